"""Deleting a bundle of the user's own store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.fields import NAME
from capt_local.bundle.manifest import MANIFEST
from capt_local.errors import ModelError


def removable(reference: str) -> Path:
    """The folder of a bundle that may be deleted; a broken one too.

    Args:
        reference: an id, or the path of its folder or manifest.

    Raises:
        ModelError: there is no such bundle in the user's own store.
    """
    own = store.user_folder()
    try:
        folder = own / reference if NAME.fullmatch(reference) else Path(reference).expanduser()
        if folder.name == MANIFEST:
            folder = folder.parent
        inside = folder.parent.resolve() == own.resolve() and NAME.fullmatch(folder.name)
        if inside and not folder.is_symlink() and folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError):
        pass  # a link to itself, nobody's home; a name that is too long, or holds a zero byte
    raise ModelError(
        f"There is no such bundle in {own}. Only bundles of the user's own store are deleted; "
        "'capt-local models list' says where each lies."
    )


def remove(folder: Path) -> None:
    """Deletes the folder of a bundle, its manifest first: what is left is no bundle any more.

    Raises:
        ModelError: it cannot be deleted.
    """
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        name = os.path.basename(error.filename) if isinstance(error.filename, str) else folder.name
        raise ModelError(f"{name} cannot be deleted: {error.strerror or 'no access'}.") from None
