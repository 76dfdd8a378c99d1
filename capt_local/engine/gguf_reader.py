"""Walks over the bytes of a GGUF header: numbers, texts and lists, never past what is there.

What a length claims is held against a limit and against the size of the file before a byte of it
is read, so that a header of lies costs neither memory nor time.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from capt_local.errors import ModelError

Scalar = int | float | bool | str
Numbers = tuple[int | float | bool, ...]

# GGUF value types: id -> struct format. 8 is a string and 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9

_LONGEST_TEXT = 16 << 20  # bytes; a chat template has some thousands
_MOST_TEXTS = 1 << 22  # in a list; a vocabulary with its merges has some hundred thousand
_MOST_NUMBERS = 1 << 26  # in a list
_KEPT_ARRAY = 1024
_CHUNK = 1 << 20


class GgufReader:
    """A place in a file that moves on.

    Args:
        file: at its beginning.
        name: of the file, for errors.
        size: of it in bytes.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._data = b""
        self._start = 0  # place of _data in the file
        self._at = 0  # next byte, within _data

    @property
    def place(self) -> int:
        """The next byte's, counted from the beginning of the file."""
        return self._start + self._at

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            ModelError: the file ends before.
        """
        self._need(count)
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def number(self, code: str) -> int:
        """The next number, in a format of `struct`.

        Raises:
            ModelError: the file ends before.
        """
        layout = struct.Struct(f"<{code}")
        found: int = layout.unpack(self.take(layout.size))[0]
        return found

    def text(self, longest: int = _LONGEST_TEXT) -> bytes:
        """The next text, with its length in front.

        Raises:
            ModelError: it is longer than that, or the file ends before.
        """
        return self.take(self._length(longest))

    def scalar(self, kind: int) -> Scalar:
        """The next value of a GGUF type that is no list.

        Raises:
            ModelError: there is no such type, or the file ends before.
        """
        if kind == STRING:
            return self.text().decode("utf-8", "replace")
        if kind not in _FORMATS:
            raise self.broken("a value has an unknown type")
        value: int | float | bool = self.number(_FORMATS[kind])
        return value

    def array(self) -> tuple[int, int, Numbers]:
        """The next list: the type of its values, its length, and the numbers of a short one.

        Raises:
            ModelError: it is longer than any that is used, of an unknown type, or cut off.
        """
        kind, length = self.number("I"), self.number("Q")
        if length > (_MOST_TEXTS if kind == STRING else _MOST_NUMBERS):
            raise self.broken("a list is longer than any that is used")
        if kind == STRING:
            self._skip_texts(length)
            return kind, length, ()
        if kind not in _FORMATS:
            raise self.broken("a list has an unknown type")
        layout = struct.Struct(f"<{length}{_FORMATS[kind]}")
        if length > _KEPT_ARRAY:
            self._skip(layout.size)
            return kind, length, ()
        return kind, length, layout.unpack(self.take(layout.size))

    def broken(self, why: str) -> ModelError:
        """The error of a header that cannot be true."""
        return ModelError(f"{self._name} is damaged: {why}. Get the file again.")

    def cut_off(self, needed: int) -> ModelError:
        """The error of a file that would have to be longer."""
        return ModelError(
            f"{self._name} is cut off: it has {self._size:,} bytes but needs at least "
            f"{needed:,}. Get the file again."
        )

    def _length(self, longest: int) -> int:
        length = self.number("Q")
        if length > longest:
            raise self.broken("a text is longer than any that is used")
        return length

    def _skip_texts(self, length: int) -> None:
        """Walks over texts; a vocabulary with its merges has 300,000."""
        data, at = self._data, self._at
        for _ in range(length):
            if at + 8 > len(data):
                self._at = at
                self._need(8)
                data, at = self._data, self._at
            at += 8 + int.from_bytes(data[at : at + 8], "little")
            if at > len(data):
                if at - len(data) > _LONGEST_TEXT:
                    raise self.broken("a text is longer than any that is used")
                self._at = len(data)
                self._skip(at - len(data))
                data, at = self._data, self._at
        self._at = at

    def _skip(self, count: int) -> None:
        if self.place + count > self._size:
            raise self.cut_off(self.place + count)
        self._start += self._at + count
        self._data, self._at = b"", 0
        self._file.seek(self._start)

    def _need(self, count: int) -> None:
        missing = count - (len(self._data) - self._at)
        if missing <= 0:
            return
        if self.place + count > self._size:
            raise self.cut_off(self.place + count)
        self._data = self._data[self._at :] + self._file.read(max(missing, _CHUNK))
        self._start += self._at
        self._at = 0
        if len(self._data) < count:
            raise self.cut_off(self._start + count)
