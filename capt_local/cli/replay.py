"""`capt-local replay`: one record of a batch run once more; is the answer the same?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.batch_input import AskFlags
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import ViewFlags, option
from capt_local.cli.structured import StructureFlags


@dataclass(frozen=True, slots=True)
class ReplayFlags:
    """Which record."""

    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What batch -o wrote.")]
    id: Annotated[str | None, option("--id", metavar="ID", help="Of the record.")] = None
    input: Annotated[
        Path | None, option("--input", metavar="PATH", help="The input of that run.")
    ] = None
    stop: Annotated[
        list[str] | None,
        option("--stop", metavar="TEXT", help="As the run had it; its output has digests alone."),
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False


def replay(
    what: ReplayFlags,
    ask: AskFlags,
    model: ModelFlags,
    form: StructureFlags,
    view: ViewFlags,
) -> int:
    """Runs a record of a batch again, and says whether the answer is the same.

    Method, parameters, threads and date are taken from the manifest beside the output; models are
    found by the id of the bundle, unless --bundle or --target says otherwise. Texts of which the
    manifest has a digest alone (--system, --template, --stop, --json-schema) are given again. What
    differs in the setting is named. No text is shown. Exit code 6 where the answer is another one.

    Examples:
      capt-local replay answers.jsonl --id note-17 --input notes.jsonl
    """
    # Imported here: the help needs none of it.
    from capt_local.cli.replay_work import work

    return work(what, ask, model, form, view)
