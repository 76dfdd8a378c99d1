"""`capt-local score`: bits per byte of texts under a method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.evaluate.likelihood import Likelihood, measure
from capt_local.evaluate.texts import read_texts
from capt_local.report.json import dumps
from capt_local.report.screen import Screen


@dataclass(frozen=True, slots=True)
class ScoreFlags:
    """Which texts, and how the result is told."""

    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSON Lines with a "text" each, or one text.')
    ]
    limit: Annotated[
        int | None, option("--limit", metavar="N", min=1, help="Only the first N texts.")
    ] = None
    max_bytes: Annotated[
        int | None,
        option("--max-bytes", metavar="N", min=1, help="Only the first N bytes of each text."),
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False
    per_item: Annotated[bool, option("--per-item", help="A line for each text before the sum.")] = (
        False
    )


def score(what: ScoreFlags, model: ModelFlags, how: MethodFlags, view: ViewFlags) -> int:
    """Log-likelihood and bits per byte of texts, exact over the normalised distribution.

    Each text is scored from its beginning, token by token. Without a fixed --alpha, its weights
    follow the text: each token is predicted with what the text before it has shown.

    Examples:
      capt-local score notes.jsonl --method capt

      capt-local score notes.jsonl --method target --limit 20 --max-bytes 2000 --json
    """
    screen = Screen.standard(view.verbose)
    texts = read_texts(what.file, limit=what.limit, size=what.max_bytes)
    bundle = find_bundle(model)
    options = generate_options(bundle, how, SampleFlags(), 0)
    done = 0

    def told(one: Likelihood) -> None:
        nonlocal done
        interrupt.check()
        done += 1
        screen.progress("scoring", done / len(texts))
        if what.per_item:
            screen.line(_text(one, options.method, as_json=what.json))

    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=options.method)
        with session.runtime:
            whole = measure(session.runtime, texts, options, told)
    screen.clear_progress()
    cut = sum(text.cut for text in texts)
    if cut:
        screen.note(f"{cut} of {len(texts)} texts were cut to --max-bytes.")
    if whole.windows > len(texts):
        screen.note(
            f"{whole.windows - len(texts)} times the context was full and a text went on afresh."
        )
    screen.line(_text(whole, options.method, as_json=what.json))
    return ExitCode.OK


def _text(one: Likelihood, method: str, *, as_json: bool) -> str:
    if as_json:
        figures = {
            "method": str(method),
            "bits_per_byte": one.bits_per_byte,
            "bytes": one.size,
            "tokens": one.tokens,
            "nats": one.nats,
        }
        return dumps({"id": one.id, **figures} if one.id else figures)
    name = f"{one.id}: " if one.id else ""
    return (
        f"{name}{one.bits_per_byte:.4f} bits per byte ({one.size} bytes, {one.tokens} tokens, "
        f"{one.nats:.1f} nats, {method})"
    )
