"""What imports that were stopped have left beside the store.

It is gone on with by the next import of the same bundle. Whether one is at work is told by its
lock, which the kernel gives back however a process ends; so nothing is taken for dead that lives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.fields import NAME
from capt_local.bundle.incoming import LOCK, OLD, Incoming, is_locked
from capt_local.errors import ModelError


@dataclass(frozen=True, slots=True)
class Leftover:
    """Files of one bundle.

    Attributes:
        name: id of the bundle.
        size: bytes.
        busy: whether an import of it is at work; None where the system does not tell.
    """

    name: str
    size: int
    busy: bool | None


def leftovers() -> list[Leftover]:
    """What lies beside the user's own store, by the names of the bundles; changes nothing."""
    above = store.incoming_folder()
    names: dict[str, int] = {}
    for entry in _entries(above):
        name = entry.name.removesuffix(OLD)
        if not entry.name.endswith(LOCK) and NAME.fullmatch(name):
            names[name] = names.get(name, 0) + _size(entry)
    return [Leftover(name, size, is_locked(above, name)) for name, size in sorted(names.items())]


def clear(name: str) -> None:
    """Deletes what is left of one bundle; what a power cut took out of the store goes back there.

    Raises:
        ModelError: an import of it is at work, or cannot be known not to be; or it cannot be
            deleted.
    """
    if is_locked(store.incoming_folder(), name) is None:
        raise ModelError(
            f"Whether an import of {name} is at work cannot be known on this system. When none is, "
            f"delete {store.incoming_folder() / name}."
        )
    with Incoming(store.user_folder() / name) as incoming, incoming.guarded():
        if incoming.folder.is_symlink() or not incoming.folder.is_dir():
            incoming.folder.unlink(missing_ok=True)
        else:
            shutil.rmtree(incoming.folder)


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.iterdir()


def _size(place: Path) -> int:
    """Bytes of a file or of a folder's files; of what vanishes meanwhile, none."""
    total = 0
    with contextlib.suppress(OSError):
        total += os.lstat(place).st_size if not place.is_dir() else 0
    for above, _, files in os.walk(place):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(above) / file).st_size
    return total
