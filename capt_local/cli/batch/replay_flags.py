"""The flags of `capt-local replay`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.options import option


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
