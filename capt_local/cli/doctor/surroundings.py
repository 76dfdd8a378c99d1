"""What `doctor` finds around the program: where memory can get to, who can write, what is old."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE
from capt_local.cli.mebibytes import mebibytes

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle

# The first release of each line in which a hostile archive cannot leave its folder (CVE-2025-4517,
# CVE-2025-4330, CVE-2025-4138 and others).
_ARCHIVES_MENDED = {(3, 11): 13, (3, 12): 11, (3, 13): 4}
_SWAPS, _BLOCK = Path("/proc/swaps"), Path("/sys/class/block")


def archive_flaws(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> str | None:
    """A line about the known flaws of this Python in unpacking archives; None without any."""
    needed = _ARCHIVES_MENDED.get((version[0], version[1]))
    if needed is None or version[2] >= needed:
        return None
    here, mended = ".".join(map(str, version)), f"{version[0]}.{version[1]}.{needed}"
    return (
        f"Python {here} has known flaws in unpacking archives (CVE-2025-4517 and others), mended "
        f"in {mended}. capt-local does not use that module; pip and other programs do."
    )


def private_memory(told: list[str]) -> dict[str, Any]:
    """Where the memory of the process could be written to: swap and core dumps."""
    import psutil

    from capt_local.engine.private import memory_is_private

    total = int(psutil.swap_memory().total)
    plain = [name for name, safe in swaps() if not safe]
    facts: dict[str, Any] = {"swap": mebibytes(total) if total else "none"}
    if total and (plain or not _SWAPS.exists()):
        where = f" ({', '.join(plain)})" if plain else ""
        told.append(
            f"There is swap that is not known to be encrypted{where}: text in memory may get to "
            "the disk. Encrypt it, or switch it off."
        )
    private = memory_is_private()
    facts["core dumps of this process"] = {True: "off", False: "possible", None: "not known"}[
        private
    ]
    if private is False:
        told.append("A core dump of this process can be written, with text in it.")
    return facts


def swaps(listing: Path = _SWAPS, block: Path = _BLOCK) -> Iterator[tuple[str, bool]]:
    """Swap devices and files of Linux, and whether they keep text off the disk.

    Args:
        listing: the kernel's list.
        block: the kernel's folder of block devices.

    Yields:
        Its name, and whether it is encrypted, or compressed memory.
    """
    try:
        lines = listing.read_text("utf-8", "replace").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        name = line.split()[0]
        device = Path(os.path.realpath(name)).name
        yield name, device.startswith("zram") or _encrypted(block / device)


def _encrypted(device: Path) -> bool:
    try:
        return (device / "dm" / "uuid").read_text("ascii", "replace").startswith("CRYPT-")
    except OSError:
        return False


def modes(bundle: Bundle, told: list[str]) -> dict[str, Any]:
    """Who can write the files of a bundle."""
    if sys.platform == "win32":
        return {"writable by others": "not known on Windows"}
    files = list(_files(bundle))
    places = {*files, *(each.parent for each in files)}
    open_ = sorted(str(path) for path in _writable(places))
    if open_:
        told.append(
            f"Other accounts can write {', '.join(open_)}, and so change what is loaded: "
            "chmod go-w."
        )
    return {"writable by others": len(open_)}


def _files(bundle: Bundle) -> Iterator[Path]:
    """Whatever decides what is loaded, and how it is asked."""
    for model in bundle.models.values():
        yield model.path
        if model.template_file is not None:
            yield model.template_file
    yield from (adapter.path for adapter in bundle.adapters.values())
    if bundle.folder is not None:
        yield from (bundle.folder / name for name in (MANIFEST, SIGNATURE, RECEIPT))


def _writable(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        try:
            if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                yield path
        except OSError:
            continue  # one that is missing is told elsewhere


def settings() -> dict[str, Any]:
    """The files that settle something, and what the site forbids."""
    from capt_local.config.read import read_site, read_user

    site, user = read_site(), read_user()
    return {
        "site file": str(site.path) if site.exists else "none",
        "user file": str(user.path) if user.exists else "none",
        "forbidden by the site": ", ".join(sorted(site.limits.forbidden)) or "nothing",
    }
