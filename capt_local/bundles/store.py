"""Where bundles are found.

In order: a path; the bundle that travels with the package; the folders that the environment
(CAPT_LOCAL_MODELS) or the files of user and site name; the user's data folder.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

from platformdirs import user_data_dir

from capt_local.bundles.manifest import MANIFEST, NAME, Bundle, PackageMissing, read_bundle
from capt_local.config import MODELS_VARIABLE, model_folders
from capt_local.errors import ModelError

DEMO = "demo"
OLD, LOCK, DOWNLOAD = ".old", ".lock", ".download"
"""Suffixes of the files that `install` makes beside a bundle's staging folder."""
_IMPORT_FIRST = "{0!r} is an archive of a bundle: import it first, 'capt-local models import FILE'."
# Names that mean a device on Windows, whatever their ending.
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def find(reference: str | Path) -> Bundle:
    """Opens the manifest of a bundle; the models themselves are not read.

    A text is an id, or a path to a bundle's folder or manifest if it holds a separator, begins with
    "." or "~", or ends in ".toml".

    Raises:
        ModelError: there is no such bundle, or its manifest is broken.
    """
    text = os.fspath(reference)
    if (
        isinstance(reference, Path)
        or text.startswith((".", "~"))
        or text.endswith(".toml")
        or "/" in text
    ):
        return _at(Path(os.path.expanduser(reference)))  # an unknown ~user is left as it is
    missing: PackageMissing | None = None
    packaged = [packaged_folder()] if reference == DEMO else []
    folders = chain(packaged, (each / reference for each in _stores()))
    for folder in folders if NAME.fullmatch(reference) else ():
        try:
            if _holds_manifest(folder):
                return _named(folder, reference)
        except PackageMissing as error:
            # The demo, without its extra; an imported one has the files beside its manifest.
            missing = missing or error
    if missing is not None:
        raise missing
    if _is_archive(reference):
        raise ModelError(_IMPORT_FIRST.format(reference))
    hint = " A folder of that name is here: write ./ in front." if os.path.isdir(reference) else ""
    raise ModelError(
        f"No bundle has the id {reference!r}. Give {DEMO!r}, the path of a folder with "
        f"a {MANIFEST} or of that file, or the id of a bundle in your own store ({user_folder()}) "
        f"or in a folder of {MODELS_VARIABLE}.{hint}"
    )


def available() -> tuple[list[Bundle], list[ModelError]]:
    """All bundles that `find` knows by their id, the packaged one first.

    Returns:
        The bundles; an error for each that is broken and each folder that cannot be read.
    """
    problems: list[ModelError] = []
    folders = [packaged_folder()]
    for store in _stores():
        try:
            folders += sorted(store.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problems.append(_unreadable(store, error))
    found: dict[str, Bundle] = {}
    for folder in folders:
        # Not a valid bundle name, such as the lost+found of a disk.
        if folder.name in found or not NAME.fullmatch(folder.name):
            continue
        try:
            if _holds_manifest(folder):
                found[folder.name] = _named(folder, folder.name)
        except ModelError as error:
            problems.append(error)
    return list(found.values()), problems


def is_installed(bundle: Bundle) -> bool:
    """Whether it lies in the user's own store or in a folder of CAPT_LOCAL_MODELS."""
    if bundle.folder is None:
        return False
    return any(is_in_store(bundle.folder, each) for each in _stores())


def is_in_store(folder: Path, store: Path) -> bool:
    """Whether a bundle's folder is directly inside a store, with links resolved."""
    return os.path.dirname(os.path.realpath(folder)) == os.path.realpath(store)


def is_packaged(bundle: Bundle) -> bool:
    """Whether it is the one that travels with the package."""
    return bundle.folder is not None and bundle.folder.resolve() == packaged_folder().resolve()


def user_folder() -> Path:
    """The user's own store; it need not exist."""
    return Path(user_data_dir("capt-local", appauthor=False)) / "models"


def staging_folder() -> Path:
    """The staging folder, where bundles for the user's own store are assembled."""
    return user_folder().parent / "incoming"


def packaged_folder() -> Path:
    """Where the demo bundle lies: inside an installed package, beside an editable one."""
    package = Path(str(resources.files("capt_local")))
    beside = package.parent / "models" / DEMO
    # In site-packages, other packages are beside ours, hence the check for pyproject.toml.
    if (package.parent / "pyproject.toml").is_file() and (beside / MANIFEST).is_file():
        return beside
    return package / "models" / DEMO


def is_id(name: str) -> bool:
    """Whether a name is a valid bundle id, usable as a folder name on every system."""
    reserved = RESERVED.fullmatch(name) or name.endswith((".", OLD, LOCK, DOWNLOAD))
    return bool(NAME.fullmatch(name)) and not reserved


def check_id(bundle: Bundle) -> None:
    """Raises ModelError if the id is not a valid folder name on every system."""
    if not is_id(bundle.id):
        raise ModelError("The id of the bundle cannot be the name of a folder.")


def removable(name: str) -> Path:
    """The folder of a bundle that may be deleted; a broken one too.

    Raises:
        ModelError: there is no bundle of that id in the user's own store.
    """
    folder = user_folder() / name
    if NAME.fullmatch(name) and folder.is_dir() and not folder.is_symlink():
        return folder
    raise ModelError(
        f"There is no bundle of that id in {user_folder()}. Only bundles of the user's own store "
        "are deleted; 'capt-local models list' says where each lies."
    )


def remove(folder: Path) -> None:
    """Deletes a bundle, its manifest first, so that a partly deleted one is no bundle."""
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        name = os.path.basename(error.filename) if isinstance(error.filename, str) else folder.name
        raise ModelError(f"{name} cannot be deleted: {error.strerror or 'no access'}.") from None


def _at(place: Path) -> Bundle:
    if not os.path.exists(place):  # also False for a name that is too long
        raise ModelError(f"There is no bundle at {place}.")
    if _is_archive(place):
        raise ModelError(_IMPORT_FIRST.format(str(place)))
    if place.is_dir() and not _holds_manifest(place):
        raise ModelError(f"The folder {place} holds no {MANIFEST}, so it is not a bundle.")
    return read_bundle(place)


def _named(folder: Path, name: str) -> Bundle:
    bundle = read_bundle(folder)
    if bundle.id != name:
        raise ModelError(
            f"{folder / MANIFEST}: the id is {bundle.id!r}, but the folder is {name!r}. "
            "Rename the folder."
        )
    return bundle


def _holds_manifest(folder: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(folder / MANIFEST).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: OSError) -> ModelError:
    return ModelError(f"The folder {folder} cannot be read: {error.strerror or 'no access'}.")


def _stores() -> Iterator[Path]:
    yield from model_folders()
    yield user_folder()


def _is_archive(reference: str | Path) -> bool:
    path = Path(reference)
    try:
        return path.suffix == ".capt" and path.is_file()
    except (OSError, ValueError):
        return False
