"""`capt-local explain`: what the expert changed in an answer that was written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from capt_local.batch.output import answer_object_of
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile, stdin_bytes
from capt_local.cli.options import HtmlFlags, ViewFlags, argument, flag
from capt_local.errors import UsageError
from capt_local.report.answers import counted, views
from capt_local.report.json import answer_from
from capt_local.report.terminal import Screen
from capt_local.strict_json import ParseError, lines, parse_json, read_bytes

_WHAT = "The file of the answer (FILE)"
_NOTHING = (
    "There is no answer to explain. Give the file that generate --json or chat wrote, or pipe it "
    "into standard input."
)


@dataclass(frozen=True, kw_only=True)
class ExplainFlags(HtmlFlags, ViewFlags):
    """Which answer, and where it is explained."""

    file: Path | None = argument(
        "FILE",
        "What generate --json, batch or /save of a chat wrote. '-' or nothing: standard input.",
    )
    turn: int | None = flag("--turn N", "Which answer of the file. Default: the last.", min=1)


def explain(flags: ExplainFlags) -> int:
    """Shows which tokens the expert changed, how far, and what the target would have written.

    No model is needed: everything stands in the file, the target's own answer too where generate
    made it (--with-target). With --html, the page takes the place of the view in the terminal.

    Examples:
      capt-local generate -f note.txt --json --top-logprobs 3 -o answer.json
      capt-local explain answer.json --html report.html
    """
    screen = Screen.standard(flags.verbose)
    file = None
    if flags.html:
        name = "The report (--html)"
        file = OutputFile(flags.html, name, inputs=[flags.file], force=flags.force)
    if flags.file is None or str(flags.file) == "-":
        found = _stored(stdin_bytes(_NOTHING, wait=flags.file is not None))
    else:
        found = _stored(read_bytes(flags.file, _WHAT))
    if flags.turn is not None and flags.turn > len(found):
        held = counted(len(found), "answer")
        raise UsageError(f"--turn {flags.turn} is not there: the file holds {held}.")
    if flags.turn is None and len(found) > 1:
        screen.notes([f"the file holds {len(found)} answers; this is the last (see --turn)."])
    one = found[(flags.turn or len(found)) - 1]
    answer = answer_from(one)
    if file is None:
        screen.show(*views(answer))
    else:
        from capt_local.report.html import page

        file.write(page(answer))
        screen.note("The report is written; it holds the text of the answer.")
    return ExitCode.OK


def _stored(data: bytes) -> list[object]:
    """The answers of a file: an object of generate, or JSON Lines of chat or batch."""
    events = _events(data)
    if len(events) == 1 and not _answer_in(events[0]):
        return events  # `answer_from` says what it lacks
    if any(isinstance(event, dict) and event.get("type") in ("undo", "clear") for event in events):
        raise UsageError(
            f"{_WHAT} is a transcript of an earlier version, from which answers were taken back."
        )
    found = [answer for answer in map(_answer_in, events) if answer]
    if not found:
        raise UsageError(_NOTHING)
    return found


def _answer_in(event: object) -> object:
    """The answer that a line holds, or None."""
    if not isinstance(event, dict):
        return None
    if "choices" in event:
        return event
    held = event.get("answer") or answer_object_of(event)
    return held if isinstance(held, dict) and "choices" in held else None


def _events(data: bytes) -> list[object]:
    try:
        return [parse_json(data)]
    except ParseError as error:
        whole = error
    rows = list(lines(data))
    if len(rows) < 2:
        raise UsageError(f"{_WHAT} is broken: {whole}." if rows else _NOTHING)
    events = []
    for number, row in rows:
        try:
            events.append(parse_json(row))
        except ParseError as error:
            raise UsageError(f"{_WHAT} is broken in line {number}: {error}.") from None
    return events
