"""The folder in which a bundle is put together before it takes its place in the store.

It lies beside the store, on the same disk, so that taking the place is one move. Only this user
can write it; a file is made only where there is none, and never through a link. What a stopped
import leaves there is gone on with by the next import of the same bundle; whether one is at work
is known by its lock, which the kernel releases however a process ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from capt_local.bundles import store
from capt_local.bundles.manifest import MANIFEST, NAME, RECEIPT, SIGNATURE, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.errors import ModelError
from capt_local.strict_json import make_private_folder

OLD, LOCK = ".old", ".lock"  # behind the name of a bundle
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


class Staging:
    """A bundle that is on its way into the store. Use it as a context manager.

    Args:
        place: where the bundle will lie.
        above: on the same disk, in which it is put together; None: beside the store.

    Attributes:
        folder: where it is put together.

    Raises:
        ModelError: the store cannot be written, or the same bundle is being imported already.
    """

    def __init__(self, place: Path, above: Path | None = None) -> None:
        """Makes the folders and takes the lock."""
        self._place = place
        above = above or place.parent.parent / "incoming"
        self.folder = above / place.name
        self._old = above / f"{place.name}{OLD}"
        try:
            for each in (place.parent, above):
                make_private_folder(each)
            self._lock = _lock(above, place.name)
            self._lock.acquire()
        except Timeout:
            raise ModelError(f"{place.name} is being imported already.") from None
        except NotImplementedError:
            raise self._failed(OSError(0, "its file system has no locks")) from None
        except OSError as error:
            raise self._failed(error) from None
        try:
            self._mend()
        except OSError as error:
            self._lock.release()
            raise self._failed(error) from None

    def is_installed(self, manifest: bytes, signature: bytes) -> bool:
        """Whether this very bundle is in the store."""
        with contextlib.suppress(OSError):
            if (self._place / MANIFEST).read_bytes() != manifest:
                return False
            there = self._place / SIGNATURE
            return (there.read_bytes() if there.exists() else b"") == signature
        return False

    def begin(self, manifest: bytes, signature: bytes) -> None:
        """Goes on with what is there of the same bundle; what is there of another one goes."""
        try:
            if self.folder.is_symlink() or not self.folder.is_dir():
                self.folder.unlink(missing_ok=True)
            elif (self._read(MANIFEST), self._read(SIGNATURE)) != (manifest, signature):
                shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for name, data in ((SIGNATURE, signature), (MANIFEST, manifest)):
                if data and not (self.folder / name).exists():
                    with self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb") as stream:
                        stream.write(data)
                        stream.flush()
                        os.fsync(stream.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def write_receipt(self, receipt: Callable[[Path], bytes], *, installed: bool = False) -> None:
        """Writes down which key has signed the bundle, whose manifest is in its place now.

        Args:
            receipt: makes it for that file; see `sign.receipt`.
            installed: beside the bundle that is in the store already, if it is not there.
        """
        folder = self._place if installed else self.folder
        place = folder / RECEIPT
        with self.guarded():
            data = receipt(folder / MANIFEST)
            if installed and place.is_file() and place.read_bytes() == data:
                return
            place.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
            with os.fdopen(os.open(place, flags, 0o600), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())

    def length(self, name: str) -> int:
        """Bytes that are there of a file."""
        try:
            return os.lstat(self.folder / name).st_size
        except OSError:
            return 0

    def part(self, name: str, size: int) -> BinaryIO:
        """A file to go on with, at its beginning; what is too long or no file is made anew."""
        place = self.folder / name
        try:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(place)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > size:
                    place.unlink()
            there = place.exists()
            new = 0 if there else os.O_CREAT | os.O_EXCL
            return self._open(name, os.O_RDWR | new, "r+b")
        except OSError as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Tells errors of the system, in what is done with files of the folder, as the store's."""
        try:
            yield
        except OSError as error:
            raise self._failed(error) from None

    def drop(self, name: str) -> None:
        """Takes a file away that is not the right one."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def install(self) -> None:
        """Lets the bundle take its place; the one that was there goes behind that."""
        check_replaceable(self._place)  # much time may have gone by
        try:
            _sync(self.folder)
            if self._place.exists():
                os.rename(self._place, self._old)
            os.rename(self.folder, self._place)
            for each in (self._place.parent, self.folder.parent):
                _sync(each)
            if self._old.exists():
                shutil.rmtree(self._old)
        except OSError as error:
            self._mend()
            raise self._failed(error) from None

    def __enter__(self) -> Self:
        """The folder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases the lock."""
        self._lock.release()

    def _mend(self) -> None:
        """After a power cut between two moves, the bundle that was there has its place again."""
        if os.path.lexists(self._old):
            if not os.path.lexists(self._place):
                os.rename(self._old, self._place)
            elif self._old.is_symlink():
                self._old.unlink()
            else:
                shutil.rmtree(self._old)

    def _read(self, name: str) -> bytes:
        with contextlib.suppress(FileNotFoundError), self._open(name, os.O_RDONLY, "rb") as stream:
            return stream.read()
        return b""

    def _open(self, name: str, flags: int, mode: str) -> BinaryIO:
        return os.fdopen(os.open(self.folder / name, flags | _SAFE, 0o600), mode)  # type: ignore[return-value]

    def _failed(self, error: OSError) -> ModelError:
        return ModelError(
            f"The store {self._place.parent} cannot be written: {error.strerror}. What is "
            "installed there is what it was."
        )


def check_replaceable(place: Path) -> None:
    """Refuses a place in which something lies that is no bundle, such as a link to a folder.

    Raises:
        ModelError: it is such a place.
    """
    if os.path.lexists(place) and (place.is_symlink() or not os.path.isfile(place / MANIFEST)):
        raise ModelError(
            f"{place} is there already, and is no bundle. Nothing was made: move it away first."
        )


def is_locked(above: Path, name: str) -> bool | None:
    """Whether a bundle is being put together right now.

    Args:
        above: the folder in which that is done.
        name: of the bundle.

    Returns:
        None where the system does not say.
    """
    if not os.path.lexists(above / f"{name}{LOCK}"):
        return False
    try:
        with _lock(above, name):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a file system without locks
        return None


def _lock(above: Path, name: str) -> FileLock:
    return FileLock(above / f"{name}{LOCK}", timeout=0, mode=0o600)


def _sync(folder: Path) -> None:
    """Returns when the disk knows which files a folder holds."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        with contextlib.suppress(OSError):  # some file systems have no such thing
            os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Files of one bundle.

    Attributes:
        name: id of the bundle.
        size: bytes.
        busy: whether an import of it is at work; None where the system does not say.
    """

    name: str
    size: int
    busy: bool | None


def leftovers() -> list[Leftover]:
    """What lies beside the user's own store, by the names of the bundles; changes nothing."""
    above = store.staging_folder()
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
    if is_locked(store.staging_folder(), name) is None:
        raise ModelError(
            f"Whether an import of {name} is at work cannot be known on this system. When none is, "
            f"delete {store.staging_folder() / name}."
        )
    with Staging(store.user_folder() / name) as staging, staging.guarded():
        if staging.folder.is_symlink() or not staging.folder.is_dir():
            staging.folder.unlink(missing_ok=True)
        else:
            shutil.rmtree(staging.folder)


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


def free_place(bundle: Bundle, output: Path | None, *, replaced: bool) -> Path:
    """Where a bundle is to lie.

    Args:
        bundle: with its id.
        output: the folder that is to be the bundle; None: in the user's own store.
        replaced: whether one that lies there goes.

    Raises:
        ModelError: there is something that does not go, or the id is not possible there.
    """
    store.check_id(bundle)
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


@contextlib.contextmanager
def new_staging(place: Path, *, in_store: bool) -> Iterator[Staging]:
    """A new, empty folder for a bundle; what is left of it at the end, or of an earlier try, goes.

    Where an import or pull was stopped, nothing is made and its files stay.

    Args:
        place: see `free_place`.
        in_store: whether that is the user's own store.

    Raises:
        ModelError: the folder cannot be written, the same bundle is being made already, or an
            import of that id was stopped.
    """
    beside = None if in_store else place.parent / f".{place.name}.incoming"
    with Staging(place, beside) as staging:
        if in_store:
            _refuse_stopped(staging.folder)
        try:
            with staging.guarded():
                _empty(staging.folder)
            yield staging
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)
            if beside is not None:
                shutil.rmtree(beside, ignore_errors=True)


def _refuse_replacing(place: Path, replaced: bool) -> None:
    """Refuses to replace what is no bundle, and any bundle without --replace."""
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
