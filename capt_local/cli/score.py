"""`capt-local score`: log-likelihoods of texts and given answers, and which choices are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile, files_of
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.answers import Choosing
from capt_local.decoding.options import Method
from capt_local.errors import Cancelled, UsageError
from capt_local.evaluate.score import (
    Likelihood,
    ScoreInput,
    ScoreOptions,
    Text,
    Total,
    bits_per_byte,
    measure,
    read_score_inputs,
)
from capt_local.report.json import JsonObject, dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle


class Scores:
    """Collects and tells what is found.

    Args:
        screen: where it is told.
        method: that gave the probabilities.
        items: what is scored, in this order.
        per_item: whether each item is told on a line of its own.
        json: whether lines and sum are JSON.

    Attributes:
        done: what was found so far.
    """

    def __init__(
        self,
        screen: Screen,
        method: Method,
        items: Sequence[ScoreInput],
        *,
        per_item: bool,
        json: bool,
    ) -> None:
        """Nothing is done yet."""
        self.done: list[Likelihood] = []
        self._screen = screen
        self._method = method
        self._items = items
        self._per_item = per_item
        self._json = json

    def add(self, one: Likelihood) -> None:
        """Takes in one item, and tells it if that is wanted."""
        line = self._items[len(self.done)].line
        self.done.append(one)
        if one.error:  # by its line: an id may be a patient's
            self._screen.note(f"line {line}: {one.error}")
        if self._per_item:
            self._screen.line(dumps(self._object(one)) if self._json else _line(one))
        self._screen.progress("scoring", len(self.done) / len(self._items))

    def lines(self) -> str:
        """JSON Lines of all items so far."""
        return "".join(dumps(self._object(one)) + "\n" for one in self.done)

    def tell(self) -> ExitCode:
        """Tells the sum of what is done, and what is wrong with it."""
        total = Total.of(self.done)
        interrupted = len(self.done) < len(self._items)
        if total.again:
            self._screen.note(
                f"{total.again} times the context was full and a text went on afresh."
            )
        if not math.isfinite(total.nats):
            never = sum(not math.isfinite(one.nats) for one in self.done)
            self._screen.note(
                f"{never} items have probability 0 under this method, so there is no finite sum."
            )
        if self._json:
            self._screen.line(dumps(self._sum(total, interrupted=interrupted)))
        else:
            self._screen.show(_table(total, self._method))
        if total.failed:
            self._screen.note(f"{total.failed} of {len(self.done)} items could not be scored.")
        if interrupted:
            self._screen.error(
                f"interrupted after {len(self.done)} of {len(self._items)} items; the figures are "
                "of these."
            )
            return ExitCode.INTERRUPTED
        return ExitCode.FAILED_RECORDS if total.failed else ExitCode.OK

    def _object(self, one: Likelihood) -> JsonObject:
        """One item, with the keys that it has something for."""
        if one.error:
            return {"id": one.id, "method": str(self._method), "error": one.error}
        result: JsonObject = {"id": one.id, **self._figures(one.nats, one.size, one.tokens)}
        if one.greedy is not None:
            result["greedy"] = one.greedy
        if one.chosen is not None:
            result["chosen"] = one.chosen
        if one.logps:
            result["logps"] = list(one.logps)
        if one.correct is not None:
            result["correct"] = one.correct
        return result

    def _sum(self, total: Total, *, interrupted: bool) -> JsonObject:
        result = self._figures(total.nats, total.size, total.tokens)
        if total.judged:
            result |= {"accuracy": total.accuracy, "questions": total.judged}
        if total.failed:
            result["failed"] = total.failed
        if interrupted:
            result["interrupted"] = True
        return result

    def _figures(self, nats: float, size: int, tokens: int) -> JsonObject:
        return {
            "method": str(self._method),
            "bits_per_byte": bits_per_byte(nats, size),
            "bytes": size,
            "tokens": tokens,
            "nats": nats,
        }


def _line(one: Likelihood) -> str:
    if one.error:
        return f"{one.id}: not scored"
    parts = []
    if one.bits_per_byte is not None:
        parts.append(f"{one.bits_per_byte:.4f} bits per byte, {one.size} bytes")
    if one.chosen is not None:
        verdict = {True: ", right", False: ", wrong", None: ""}[one.correct]
        parts.append(f"choice {one.chosen}{verdict}")
    return f"{one.id}: {'; '.join(parts)}"


def _table(total: Total, method: Method) -> Table:
    bits = total.bits_per_byte
    cells = {
        "method": str(method),
        "bits per byte": "-" if bits is None else f"{bits:.4f}",
        "bytes": f"{total.size}",
        "tokens": f"{total.tokens}",
        "nats": f"{total.nats:.1f}",
    }
    if total.accuracy is not None:
        cells["accuracy"] = f"{total.accuracy:.3f} of {total.judged}"
    right = tuple(range(1, len(cells)))
    return Table("", (tuple(cells.values()),), tuple(cells), right=right)


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
    items = read_score_inputs(
        what.file, "The file (FILE)", raw=what.raw, limit=what.limit, size=what.max_bytes
    )
    scoring = ScoreOptions(what.raw, what.end, _choosing(what))
    bundle = find_bundle(model)
    output = _output(what, bundle)
    options = generate_options(bundle, how, SampleFlags(), 0)
    scores = Scores(screen, options.method, items, per_item=what.per_item, json=what.json)
    _tell_cuts(screen, items)
    whole = False
    try:
        with Interrupt() as interrupt:
            session = open_session(
                bundle, model, screen, interrupt, wanted=options.method, scores=True
            )
            screen.detail(f"alignment {options.align.kind}")
            with session.runtime:
                for one in measure(session.runtime, items, options, scoring, interrupt):
                    scores.add(one)
        whole = True
    except Cancelled:
        if not scores.done:
            raise
    finally:
        screen.clear_progress()
        if output is not None and scores.done:
            spared = None if whole else output.spare()
            if spared is None:
                output.write(scores.lines())
            else:
                screen.notes([spared])
    return scores.tell()


def _choosing(what: ScoreFlags) -> Choosing:
    if what.choice is How.LIKELIHOOD:
        return _HOW[what.normalise or Normalise.NONE]
    if what.normalise is not None:
        raise UsageError(
            "--normalise is for the likelihood of choices, not for --choice constrained."
        )
    return Choosing.CONSTRAINED


def _output(what: ScoreFlags, bundle: Bundle) -> OutputFile | None:
    """The file for the items, tried out before anything is loaded."""
    if what.output is None:
        return None
    return OutputFile(what.output, inputs=[what.file, *files_of(bundle)])


def _tell_cuts(screen: Screen, items: list[ScoreInput]) -> None:
    cut = sum(isinstance(item, Text) and item.cut for item in items)
    if cut:
        screen.note(f"{cut} of {len(items)} texts are cut to --max-bytes.")
