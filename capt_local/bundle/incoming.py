"""The folder in which a bundle is put together before it takes its place in the store.

It lies beside the store, on the same disk, so that taking the place is one move. Only this user
can write it; a file is made only where there is none, and never through a link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE
from capt_local.errors import ModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OLD, LOCK = ".old", ".lock"  # behind the name of a bundle
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


class Incoming:
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
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(
                above / f"{place.name}{LOCK}", os.O_RDWR | os.O_CREAT | _SAFE, 0o600
            )
        except OSError as error:
            raise self._failed(error) from None
        try:
            self._hold()
            self._mend()
        except OSError as error:
            os.close(self._lock)
            raise self._failed(error) from None
        except ModelError:
            os.close(self._lock)
            raise

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

    def vouch(self, receipt: Callable[[Path], bytes], *, installed: bool = False) -> None:
        """Keeps which key has signed the bundle, whose manifest is in its place now.

        Args:
            receipt: makes it for that file; see `bundle.signer`.
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
        """Gives the lock back."""
        os.close(self._lock)

    def _hold(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"{self._place.name} is being imported already.") from None

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
        None where the system does not tell.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(above / f"{name}{LOCK}", os.O_RDONLY | _SAFE)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return False


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
