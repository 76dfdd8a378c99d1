"""`capt-local merge`: the outputs of all shards as the output of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capt_local.cli.batch.input import AskFlags
from capt_local.cli.exits import ExitCode
from capt_local.cli.options import ViewFlags, option
from capt_local.errors import UsageError
from capt_local.report.json import dumps
from capt_local.report.screen import Screen

if TYPE_CHECKING:
    from capt_local.batch.sources import Source


@dataclass(frozen=True, slots=True)
class MergeFlags:
    """Which outputs, and where the merged one goes."""

    outputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="OUTPUT...", show_default=False, help="The outputs of all shards of a run."
        ),
    ] = None
    output: Annotated[
        Path | None,
        option("-o", "--output", metavar="PATH", help="The new file (mode 0600)."),
    ] = None
    input: Annotated[
        Path | None,
        option(
            "--input",
            metavar="PATH",
            help="The input of the run, read as batch read it: each record is looked for. Without "
            "it, the shards' own counts are compared.",
        ),
    ] = None
    force_new: Annotated[
        bool, option("--force-new", help="Move an output that is there aside.")
    ] = False
    json: Annotated[
        bool, option("--json", twin="JSON", help="Write the counts to standard output as JSON.")
    ] = False


def merge(what: MergeFlags, asked: AskFlags, view: ViewFlags) -> int:
    """Puts the outputs of shards together, in the order of the input.

    They must be of one run and one input, all there and whole; else nothing is written. The shards
    stay as they are. Exit code 6 when some of the records have failed.

    Examples:
      capt-local merge part1.jsonl part2.jsonl -o answers.jsonl

      capt-local merge part*.jsonl -o answers.jsonl --input notes.jsonl
    """
    screen = Screen.standard(view.verbose)
    if not what.outputs:
        raise UsageError("There are no outputs to merge. Name those of all shards.")
    if what.output is None:
        raise UsageError("There is no output. Name a new file with -o.")
    # Imported here: the help needs none of it.
    from capt_local.batch.merge import merge as merge_outputs

    records = None
    if what.input is not None:
        records = _records(asked.check(what.input))
    done = merge_outputs(what.outputs, what.output, records=records, force_new=what.force_new)
    screen.notes(done.notices)
    if what.json:
        told = {"records": done.records, "failed": done.failed, "shards": done.shards}
        screen.line(dumps(told))
    failed = f", {done.failed} of them failed" if done.failed else ""
    screen.note(f"merged {done.records} records of {done.shards} shards{failed}.")
    return ExitCode.FAILED_RECORDS if done.failed else ExitCode.OK


def _records(source: Source) -> list[tuple[int, str, str]]:
    """Line, id and digest of each record."""
    return list(source.lines())
