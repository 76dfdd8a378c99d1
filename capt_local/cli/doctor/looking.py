"""What `doctor` does with files that no trusted manifest names: others load them first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capt_local.bundle.check import Check

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


def first_look(bundle: Bundle, check: Check, told: list[str]) -> dict[str, Any]:
    """Who vouches for the files, or that they were loaded in a process of their own.

    Raises:
        ModelError: one is damaged, or ended the process that looked at it.
        MemoryShortage: one does not fit into memory.
    """
    from capt_local.runtime.first_look import NOT_LOOKED_AT, is_trusted, look_first

    if is_trusted(bundle):
        return {"files": "named by a trusted manifest"}
    if check is Check.NEVER:
        told.append(NOT_LOOKED_AT)
        return {"files": "not looked at"}
    look_first(bundle, check=check)
    return {"files": "loaded in a process of their own, every weight looked at"}
