"""A folder with one note in each text file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from capt_local.batch.inputs import InputFormat
from capt_local.batch.pieces import LONGEST, Piece
from capt_local.errors import UsageError
from capt_local.strict.files import size_text, utf8
from capt_local.strict.problems import NotReadable

_SUFFIX = ".txt"
# A link could name a file that the user may not mean to send; a pipe would be waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


class Folder:
    """The files `*.txt` of a folder by name, not of folders in it; see `inputs.Input`.

    Attributes:
        passed_over: how many other entries the folder has.

    Args:
        path: of the folder.
        what: how errors call it.
        longest: bytes that a file may have.

    Raises:
        OSError: it cannot be read.
    """

    kind = InputFormat.TXT_DIR
    unit = "file"

    def __init__(self, path: Path, what: str, longest: int = LONGEST) -> None:
        """Lists the folder."""
        self.what = what
        self._path = path
        self._longest = longest
        names = os.listdir(path)
        self.names = _texts(names)
        self.passed_over = len(names) - len(self.names)
        self._hash = hashlib.sha256()
        self._done = 0

    @property
    def digest(self) -> str:
        """SHA-256 over the name and the SHA-256 of each file."""
        return self._hash.hexdigest()

    @property
    def share(self) -> float:
        """How many of the files have been read, 0 to 1."""
        return self._done / max(1, len(self.names))

    def stamp(self) -> object:
        """Which texts it has: one that was changed is seen when it is read again.

        Not the folder's own times: an output that is written beside the texts changes them.
        """
        try:
            return _texts(os.listdir(self._path))
        except OSError:
            return None

    def how(self) -> dict[str, str]:
        """Nothing does."""
        return {}

    def pieces(self) -> Iterator[Piece]:
        """The files; the place of a piece is that of its name among the names, from 0."""
        self._hash, self._done = hashlib.sha256(), 0
        for place, name in enumerate(self.names):
            data, problem = b"", None
            try:
                data = self._read(name)
            except NotReadable as error:
                problem = str(error)
            except OSError as error:
                problem = f"cannot be read: {error.strerror or 'no access'}"
            self._hash.update(os.fsencode(name) + b"\0" + hashlib.sha256(data).digest())
            self._done += 1
            yield Piece(place + 1, place, data, problem)

    def fields(self, piece: Piece) -> dict[str, object]:
        """The text as `note`, and the name of the file as `id`.

        Raises:
            NotReadable: the file is not text.
        """
        text = utf8(piece.data).removeprefix("\ufeff")
        return {"id": self.names[piece.start], "note": text}

    def again(self, start: int, size: int) -> bytes:
        """Reads a file again.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return self._read(self.names[start])
        except NotReadable:
            return b""

    def _read(self, name: str) -> bytes:
        path = self._path / name
        if path.is_symlink():
            raise NotReadable("a link; copy the file into the folder")
        handle = os.open(path, _FLAGS | _BINARY)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NotReadable("not a regular file")
            with open(handle, "rb", closefd=False) as stream:
                data = stream.read(self._longest + 1)
        finally:
            os.close(handle)
        if len(data) > self._longest:
            raise NotReadable(f"larger than {size_text(self._longest)}")
        return data


def _texts(names: Sequence[str]) -> tuple[str, ...]:
    """Those of text files, in order."""
    return tuple(sorted(name for name in names if name.lower().endswith(_SUFFIX)))


def refuse_other_id(id_field: str) -> None:
    """In a folder the name of a file is its id.

    Raises:
        UsageError: another field is to be the id.
    """
    if id_field != "id":
        raise UsageError("--id-field goes with JSON Lines and CSV; in a folder, names are the ids.")
