"""`capt-local models clean`: what imports that were stopped have left beside the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from capt_local.cli.exits import ExitCode
from capt_local.cli.models.verb import mebibytes
from capt_local.cli.options import ViewFlags, option
from capt_local.report.terminal import Screen


@dataclass(frozen=True, slots=True)
class CleanFlags:
    """Whether anything is deleted."""

    yes: Annotated[bool, option("--yes", help="Delete it; without, only say what would go.")] = (
        False
    )


def models_clean(what: CleanFlags, view: ViewFlags) -> int:
    """Deletes what imports and downloads that were stopped have left beside the user's own store.

    The same import given again would go on with it. What is being imported right now stays.
    Without --yes nothing is deleted, and the exit code is 2.
    """
    from capt_local.bundle.leftovers import clear, leftovers

    screen = Screen.standard(view.verbose)
    found = leftovers()
    dead = [each for each in found if not each.busy]
    for each in found:
        if each.busy:
            screen.note(f"note: {each.name} is being imported right now and stays.")
    if not dead:
        screen.line("Nothing is left of imports that were stopped.")
        return ExitCode.OK
    named = ", ".join(f"{each.name} ({mebibytes(each.size)})" for each in dead)
    if not what.yes:
        screen.error(f"nothing is deleted without --yes; what would go is left of {named}.")
        return ExitCode.USAGE
    for each in dead:
        clear(each.name)
        screen.line(f"What was left of {each.name} is deleted: {mebibytes(each.size)}.")
    return ExitCode.OK
