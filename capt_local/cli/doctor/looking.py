"""What `doctor` does with files that no trusted manifest names: others load them first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from capt_local.bundle.check import Check

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle
    from capt_local.cli.doctor.diagnosis import Diagnosis


def first_look(bundle: Bundle, check: Check, diagnosis: Diagnosis) -> dict[str, Any]:
    """Who vouches for the files, or that they were loaded in a process of their own.

    The stamps of what was looked into are added to those of the diagnosis.

    Raises:
        ModelError: one is damaged, or ended the process that looked at it.
        MemoryShortage: one does not fit into memory.
    """
    from capt_local.runtime.first_look import NOT_LOOKED_AT, is_trusted, look_first

    if is_trusted(bundle):
        return {"files": "named by a trusted manifest"}
    if check is Check.NEVER:
        diagnosis.warnings.append(NOT_LOOKED_AT)
        return {"files": "not looked at"}
    diagnosis.stamps = look_first(bundle, check=check, stamps=diagnosis.stamps)
    return {"files": "loaded in a process of their own, now or since they last changed"}


def confinement(told: list[str]) -> dict[str, Any]:
    """Whether the kernel holds the process that looks at such files."""
    from capt_local.engine.examine import calls_are_forbidden

    forbidden = calls_are_forbidden()
    if not forbidden and sys.platform == "linux":
        told.append(
            "The kernel does not forbid system calls to the process that looks at model files "
            "first: a hostile file could reach beyond it. Use bundles that a trusted key signed."
        )
    return {"system calls forbidden to it": forbidden}
