"""`capt-local score`: bits per byte of texts under a method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.decode.options import GenerateOptions
from capt_local.evaluate.likelihood import Likelihood, measure
from capt_local.evaluate.texts import Text, read_texts
from capt_local.report.json import dumps
from capt_local.report.screen import Screen
from capt_local.report.view import Table


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
    texts = read_texts(what.file, "The file of texts (FILE)", limit=what.limit, size=what.max_bytes)
    bundle = find_bundle(model)
    options = generate_options(bundle, how, SampleFlags(), 0)
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt, wanted=options.method)
        with session.runtime:
            whole = _measured(session, texts, options, what)
    _tell_cuts(screen, texts, whole)
    if what.json:
        screen.line(_json(whole, options.method))
    else:
        screen.show(_table(whole, options.method))
    return ExitCode.OK


def _measured(
    session: Session, texts: list[Text], options: GenerateOptions, what: ScoreFlags
) -> Likelihood:
    """Scores the texts, with a progress line meanwhile."""
    screen, done = session.screen, 0

    def told(one: Likelihood) -> None:
        nonlocal done
        done += 1
        screen.progress("scoring", done / len(texts))
        if what.per_item:
            screen.line(_json(one, options.method) if what.json else _line(one))

    try:
        return measure(session.runtime, texts, options, told, session.interrupt)
    finally:
        screen.clear_progress()


def _tell_cuts(screen: Screen, texts: list[Text], whole: Likelihood) -> None:
    cut = sum(text.cut for text in texts)
    if cut:
        screen.note(f"{cut} of {len(texts)} texts were cut to --max-bytes.")
    if whole.windows > len(texts):
        screen.note(
            f"{whole.windows - len(texts)} times the context was full and a text went on afresh."
        )


def _json(one: Likelihood, method: str) -> str:
    figures = {
        "method": str(method),
        "bits_per_byte": one.bits_per_byte,
        "bytes": one.size,
        "tokens": one.tokens,
        "nats": one.nats,
    }
    return dumps({"id": one.id, **figures} if one.id else figures)


def _line(one: Likelihood) -> str:
    return f"{one.id}: {one.bits_per_byte:.4f} bits per byte, {one.size} bytes"


def _table(whole: Likelihood, method: str) -> Table:
    heading = ("method", "bits per byte", "bytes", "tokens", "nats")
    row = (
        str(method),
        f"{whole.bits_per_byte:.4f}",
        f"{whole.size}",
        f"{whole.tokens}",
        f"{whole.nats:.1f}",
    )
    return Table("", (row,), heading, right=(1, 2, 3, 4))
