"""Where a bundle that is made takes its place: in the user's own store, or in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.incoming import Incoming, check_replaceable
from capt_local.bundle.manifest import MANIFEST, Bundle
from capt_local.bundle.members import check_id
from capt_local.bundle.read import read_bundle
from capt_local.errors import ModelError


def place_of_bundle(bundle: Bundle, output: Path | None, *, replaced: bool) -> Path:
    """Where a bundle is to lie.

    Args:
        bundle: with its id.
        output: the folder that is to be the bundle; None: in the user's own store.
        replaced: whether one that lies there goes.

    Raises:
        ModelError: there is something that does not go, or the id is not possible there.
    """
    check_id(bundle)
    if output is None:
        if bundle.id == store.DEMO:
            raise ModelError(
                f"The id {store.DEMO} is that of the bundle that travels with the package. Give "
                "another one."
            )
        place = store.user_folder() / bundle.id
    else:
        place = Path(os.path.abspath(os.path.expanduser(output)))  # also of nobody's home
        if not place.parent.is_dir():
            raise ModelError(f"{place.parent}, in which the bundle is to lie, is no folder.")
    if os.path.lexists(place):
        _refuse_replacing(place, replaced)
    return place


@contextmanager
def under_way(place: Path, *, in_store: bool) -> Iterator[Incoming]:
    """A new, empty folder for a bundle; what is left of it at the end, or of an earlier try, goes.

    What an import or pull has left stays, and nothing is made.

    Args:
        place: see `place_of_bundle`.
        in_store: whether that is the user's own store.

    Raises:
        ModelError: the folder cannot be written, the same bundle is being made already, or an
            import of that id was stopped.
    """
    beside = None if in_store else place.parent / f".{place.name}.incoming"
    with Incoming(place, beside) as incoming:
        if in_store:
            _refuse_stopped(incoming.folder)
        try:
            with incoming.guarded():
                _empty(incoming.folder)
            yield incoming
        finally:
            shutil.rmtree(incoming.folder, ignore_errors=True)
            if beside is not None:
                shutil.rmtree(beside, ignore_errors=True)


def _refuse_replacing(place: Path, replaced: bool) -> None:
    """Refuses to replace what is no bundle, and any bundle unless that was asked for."""
    check_replaceable(place)
    if replaced:
        return
    try:
        found = read_bundle(place)
        there = f"The bundle {found.id} {found.version}".rstrip()
    except ModelError:
        there = "A broken bundle"
    raise ModelError(
        f"{there} is there already ({place}). Give another id, or --replace to take its place."
    )


def _refuse_stopped(folder: Path) -> None:
    """Gigabytes may be there already. An import begins with the manifest, a making ends with it."""
    if os.path.lexists(folder / MANIFEST):
        raise ModelError(
            f"A stopped import or pull of {folder.name} is there ({folder}). Give its command "
            "again to go on with it, 'capt-local models clean --yes' to delete it, or another id."
        )


def _empty(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
