"""`capt-local explain`: what the expert changed in an answer that was kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.batch.output import answer_object_of
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile
from capt_local.cli.options import HtmlFlags, TargetAloneFlags, ViewFlags, option
from capt_local.errors import UsageError
from capt_local.report.answers import views
from capt_local.report.json import Answer, Stored, answer_from, missing
from capt_local.report.terminal import Screen
from capt_local.strict_json import NotReadable, lines, parse_json, read_bytes

_WHAT = "The file of the answer (FILE)"
_NOTHING = (
    "There is no answer to explain. Give the file that generate --json or chat wrote, or pipe it "
    "into standard input."
)

_NO_LOGPROBS = (
    "The answer holds no log-probabilities, so nothing says what the expert changed. batch keeps "
    "them with --logprobs, and with --top-logprobs 3 what each model found likeliest."
)


@dataclass(frozen=True, slots=True)
class StoredFlags:
    """Which answer."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="What generate --json wrote, or a transcript of chat. '-' or nothing: "
            "standard input.",
            show_default=False,
        ),
    ] = None
    turn: Annotated[
        int | None,
        option("--turn", metavar="N", min=1, help="Which answer of the file. Default: the last."),
    ] = None


def explain(what: StoredFlags, report: HtmlFlags, beside: TargetAloneFlags, view: ViewFlags) -> int:
    """Shows which tokens the expert changed, how far, and what the target would have said.

    No model is needed: everything stands in the file. With --html, the page takes the place of
    the view in the terminal.

    Examples:
      capt-local generate -f note.txt --json --top-logprobs 3 -o answer.json

      capt-local explain answer.json --html report.html
    """
    screen = Screen.standard(view.verbose)
    file = None
    if report.html:
        name = "The report (--html)"
        file = OutputFile(report.html, name, inputs=[what.file], force=report.force)
    kept = _kept(_read(what.file))
    if what.turn is not None and what.turn > len(kept):
        raise UsageError(f"--turn {what.turn} is not there: the file holds {_count(len(kept))}.")
    if what.turn is None and len(kept) > 1:
        screen.notes([f"the file holds {len(kept)} answers; this is the last (see --turn)."])
    one = kept[(what.turn or len(kept)) - 1]
    if _without_logprobs(one):
        raise UsageError(_NO_LOGPROBS)
    found = answer_from(one)
    alone = _target_alone(found) if beside.with_target else None
    screen.notes(missing(found.answer))
    if file is None:
        screen.show(*views(found.answer, alone))
    else:
        from capt_local.report.html import page

        file.write(page(found.answer, alone))
        screen.note("The report is written; it holds the text of the answer.")
    return ExitCode.OK


def _target_alone(found: Stored) -> Answer:
    if found.alone is None:
        raise UsageError(
            "The file does not hold the target's own answer. Make it with generate --json "
            "--with-target."
        )
    return found.alone


def _read(file: Path | None) -> bytes:
    if file is not None and str(file) != "-":
        return read_bytes(file, _WHAT)
    stream = sys.stdin.buffer if sys.stdin is not None else None
    if stream is None or (file is None and stream.isatty()):
        raise UsageError(_NOTHING)
    try:
        return stream.read()
    except OSError as error:
        raise UsageError(f"Standard input cannot be read: {error.strerror}.") from None


def _kept(data: bytes) -> list[object]:
    """The answers of a file: an object of generate, or JSON Lines of chat or batch.

    Raises:
        UsageError: it is neither, or holds no answer.
    """
    events = _events(data)
    if len(events) == 1 and not _answer_in(events[0]):
        return events  # `answer_from` tells what it lacks
    kept: list[object] = []
    for event in events:
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "undo":
            del kept[-1:]
        elif kind == "clear":
            kept.clear()
        elif answer := _answer_in(event):
            kept.append(answer)
    if not kept:
        raise UsageError(_NOTHING)
    return kept


def _answer_in(event: object) -> object:
    """The answer that a line holds, or None."""
    if not isinstance(event, dict):
        return None
    if "choices" in event:
        return event
    held = event.get("answer") or answer_object_of(event)
    return held if isinstance(held, dict) and "choices" in held else None


def _without_logprobs(answer: object) -> bool:
    """Whether it is an answer as batch writes it when it is not asked for log-probabilities."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and first.get("logprobs", first) is None


def _events(data: bytes) -> list[object]:
    try:
        return [parse_json(data)]
    except NotReadable as error:
        whole = error
    rows = list(lines(data))
    if len(rows) < 2:
        raise UsageError(f"{_WHAT} is broken: {whole}." if rows else _NOTHING)
    events = []
    for number, row in rows:
        try:
            events.append(parse_json(row))
        except NotReadable as error:
            raise UsageError(f"{_WHAT} is broken in line {number}: {error}.") from None
    return events


def _count(number: int) -> str:
    return f"{number} answer{'' if number == 1 else 's'}"
