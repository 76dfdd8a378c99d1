"""`capt-local audit`: the log of runs, checked and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from capt_local.batch.audit_chain import Verdict, verify, with_head
from capt_local.cli.exits import ExitCode
from capt_local.cli.options import ViewFlags, option
from capt_local.errors import UsageError
from capt_local.report.json import dumps
from capt_local.report.screen import Screen

_HASH = re.compile(r"[0-9a-f]{64}")


class Action(StrEnum):
    """What is done with the log."""

    VERIFY = "verify"
    SHOW = "show"


@dataclass(frozen=True, slots=True)
class AuditFlags:
    """Which log, and what of it."""

    action: Annotated[Action, typer.Argument(metavar="verify|show", help="What is done.")]
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What batch --audit wrote.")]
    head: Annotated[
        str | None,
        option(
            "--head",
            metavar="HASH",
            help="A head that a run printed: it must be in the log, else entries were cut off.",
        ),
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


def audit(what: AuditFlags, view: ViewFlags) -> int:
    """Checks or shows the log of runs that batch --audit writes.

    Each entry holds the hash of the one before, so a changed, added or missing entry is found. Exit
    code 6 when an entry is bad, and the first one is named, or when none has the head of --head.

    Examples:
      capt-local audit verify runs.audit

      capt-local audit show runs.audit
    """
    if what.head is not None and not _HASH.fullmatch(what.head):
        raise UsageError("--head takes 64 hexadecimal digits.")
    screen = Screen.standard(view.verbose)
    found = verify(what.file)
    if what.head is not None:
        found = with_head(found, what.head)
    if what.action is Action.SHOW:
        _show(screen, found, json=what.json)
    elif what.json:
        screen.line(dumps(_as_object(found)))
    if found.problem:
        entry = "" if found.bad is None else f", entry {found.bad}"
        screen.error(f"the audit log{entry}: {found.problem}.")
        return ExitCode.FAILED_RECORDS
    if found.torn:
        screen.notes([f"the log ends in half an entry ({found.torn} bytes)."])
    if what.action is Action.VERIFY and not what.json:
        screen.line(f"{len(found.entries)} entries, all whole; head {found.head}")
    return ExitCode.OK


def _show(screen: Screen, found: Verdict, *, json: bool) -> None:
    for entry in found.entries:
        screen.line(dumps(entry) if json else _told(entry))


def _told(entry: Mapping[str, Any]) -> str:
    """An entry on one line."""
    counts = entry.get("counts")
    told = [f"{entry.get(name)}" for name in ("n", "time", "event", "run", "bundle")]
    if entry.get("shard"):
        told.append(f"shard {entry['shard']}")
    if isinstance(counts, dict):
        told += [f"{name} {count}" for name, count in counts.items()]
    if entry.get("exit_status") is not None:
        told.append(f"exit {entry['exit_status']}")
    return "  ".join(told)


def _as_object(found: Verdict) -> dict[str, Any]:
    return {
        "ok": not found.problem,
        "entries": len(found.entries),
        "head": found.head,
        "first_bad": found.bad,
        "problem": found.problem or None,
        "torn_bytes": found.torn,
    }
