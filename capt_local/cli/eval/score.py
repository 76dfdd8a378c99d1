"""`capt-local score`: how probable texts and given answers are, and which choices are taken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.eval.scores import Scores
from capt_local.cli.files import OutputFile
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.answers import Choosing
from capt_local.errors import Cancelled, UsageError
from capt_local.evaluate.likelihood import Asking, measure
from capt_local.evaluate.reading.given import Given, read_given
from capt_local.evaluate.reading.texts import Text
from capt_local.report.terminal import Screen


class Normalise(StrEnum):
    """What the log-likelihood of a choice is divided by."""

    NONE = "none"
    BYTES = "bytes"
    TOKENS = "tokens"


class How(StrEnum):
    """How a choice is made."""

    LIKELIHOOD = "likelihood"
    CONSTRAINED = "constrained"


_HOW = {
    Normalise.NONE: Choosing.LIKELIHOOD,
    Normalise.BYTES: Choosing.PER_BYTE,
    Normalise.TOKENS: Choosing.PER_TOKEN,
}


@dataclass(frozen=True, slots=True)
class ScoreFlags:
    """What is scored, and how the result is told."""

    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines (.jsonl, see above), or one text.")
    ]
    limit: Annotated[
        int | None, option("--limit", metavar="N", min=1, help="Only the first N items.")
    ] = None
    max_bytes: Annotated[
        int | None,
        option("--max-bytes", metavar="N", min=1, help="Only the first N bytes of each text."),
    ] = None
    raw: Annotated[
        bool,
        option("--raw", twin="RAW", help="Answers go on with the prompt, without a template."),
    ] = False
    end: Annotated[
        bool, option("--end", help="It counts that a given answer ends where it does.")
    ] = False
    normalise: Annotated[
        Normalise | None,
        option(
            "--normalise",
            metavar="none|bytes|tokens",
            help="What the log-likelihood of a choice is divided by. Default: none.",
        ),
    ] = None
    choice: Annotated[
        How,
        option(
            "--choice",
            metavar="likelihood|constrained",
            help="Take the likeliest choice, or generate one token by token. Default: likelihood.",
        ),
    ] = How.LIKELIHOOD
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False
    per_item: Annotated[bool, option("--per-item", help="A line for each item before the sum.")] = (
        False
    )
    output: Annotated[
        Path | None,
        option("-o", "--output", metavar="PATH", help="Write a line of JSON for each item here."),
    ] = None


def score(what: ScoreFlags, model: ModelFlags, how: MethodFlags, view: ViewFlags) -> int:
    """Log-likelihood and bits per byte, exact over the normalised distribution.

    Each line of FILE is {"id", "text"}, a text that is scored from its beginning; or {"id",
    "prompt", "continuation"}, a given answer after a prompt; or {"id", "prompt", "choices",
    "answer"}, of which one is chosen. "messages" may stand for "prompt". Without a fixed --alpha,
    its weights come from the prompt; in a text they follow it, each token being predicted with
    what stands before it. An item that is longer than the context is told, and the rest goes on.

    Examples:
      capt-local score notes.jsonl --method capt

      capt-local score questions.jsonl --normalise bytes --per-item --json
    """
    screen = Screen.standard(view.verbose)
    items = read_given(
        what.file, "The file (FILE)", raw=what.raw, limit=what.limit, size=what.max_bytes
    )
    asking = Asking(what.raw, what.end, _choosing(what))
    output = _output(what)
    bundle = find_bundle(model)
    options = generate_options(bundle, how, SampleFlags(), 0)
    scores = Scores(screen, options.method, items, per_item=what.per_item, json=what.json)
    _tell_cuts(screen, items)
    try:
        with Interrupt() as interrupt:
            session = open_session(bundle, model, screen, interrupt, wanted=options.method)
            screen.detail(f"alignment {options.align.kind}: {options.align.kind.cost}")
            with session.runtime:
                for one in measure(session.runtime, items, options, asking, interrupt):
                    scores.add(one)
    except Cancelled:
        if not scores.done:
            raise
    finally:
        screen.clear_progress()
        if output is not None and scores.done:
            output.write(scores.lines())
    return scores.tell()


def _choosing(what: ScoreFlags) -> Choosing:
    if what.choice is How.LIKELIHOOD:
        return _HOW[what.normalise or Normalise.NONE]
    if what.normalise is not None:
        raise UsageError(
            "--normalise is for the likelihood of choices, not for --choice constrained."
        )
    return Choosing.CONSTRAINED


def _output(what: ScoreFlags) -> OutputFile | None:
    """The file for the items, tried out before anything is loaded."""
    if what.output is None:
        return None
    output = OutputFile(what.output)
    if what.output.exists() and what.output.samefile(what.file):
        raise UsageError("The output (-o) is FILE itself. Name another one.")
    return output


def _tell_cuts(screen: Screen, items: list[Given]) -> None:
    cut = sum(isinstance(item, Text) and item.cut for item in items)
    if cut:
        screen.note(f"{cut} of {len(items)} texts are cut to --max-bytes.")
