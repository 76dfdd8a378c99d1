"""What `doctor` finds in the stores: which bundles, whether they are whole, whose keys count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.bundle.check import Check
from capt_local.cli.mebibytes import mebibytes
from capt_local.cli.vouched import signed
from capt_local.config.places import key_folders
from capt_local.errors import ModelError

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


def store(check: Check | None, told: list[str]) -> dict[str, Any]:
    """The bundles that can be named by their id; each that is not whole is a warning.

    Args:
        check: `always` reads every file of every bundle; else sizes and signatures are looked at.
        told: takes the warnings.
    """
    from capt_local.bundle import store

    broken: list[ModelError] = []
    found = store.available(broken.append)
    for bundle in found:
        try:
            _check_whole(bundle, check)
        except ModelError as error:
            broken.append(error)
    told.extend(str(error) for error in broken)
    read = check is Check.ALWAYS
    return {
        "place": str(store.user_folder()),
        "bundles": ", ".join(bundle.id for bundle in found),
        "broken": len(broken),
        "digests of all": "verified" if read else "not read; --verify always reads them",
        "left of stopped imports": _left(told) or "nothing",
    }


def keys() -> dict[str, Any]:
    """The keys whose signatures count.

    Raises:
        ModelError: one is no key, or others than its owner may write it.
    """
    names = ("of the site", "of the user")
    return {name: _keys(folder) for name, folder in zip(names, key_folders(), strict=True)}


def _keys(folder: Path) -> str:
    if not folder.is_dir():  # else nothing of cryptography is loaded
        return "none"
    from capt_local.bundle.signing import trusted_keys

    found = trusted_keys([folder]).values()
    return ", ".join(f"{key.name} {key.fingerprint[:16]}...".lstrip() for key in found) or "none"


def _check_whole(bundle: Bundle, check: Check | None) -> None:
    """Looks at a bundle that nobody has asked for.

    Raises:
        ModelError: a file or the signature is not what it should be.
    """
    from capt_local.bundle.verify import verify

    signed(bundle)
    if check is Check.ALWAYS:
        verify(bundle)
        return
    for role, model in bundle.models.items():
        _check_size(bundle, role, model.path, model.size)
    for role, adapter in bundle.adapters.items():
        _check_size(bundle, role, adapter.path, adapter.size)


def _check_size(bundle: Bundle, role: str, path: Path, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise ModelError(
            f"The bundle {bundle.id} is not whole: {path.name} of the {role} has {found} bytes "
            f"instead of {size}. Get the bundle again from its source."
        )


def _left(told: list[str]) -> str:
    from capt_local.bundle.leftovers import leftovers

    dead = [each for each in leftovers() if not each.busy]
    named = ", ".join(f"{each.name} ({mebibytes(each.size)})" for each in dead)
    if any(each.busy is None for each in dead):
        told.append(
            f"Imports that are not at their end have left files: {named}. Whether one is at work "
            "right now cannot be known on this system."
        )
    elif dead:
        told.append(
            f"Imports were stopped and have left files: {named}. Give the import again to go on "
            "with it, or delete them: capt-local models clean."
        )
    return named
