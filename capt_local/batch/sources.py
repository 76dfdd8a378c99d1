"""An input that was checked, and is read again one record at a time.

Of a checked input its ids are kept, and of each record where it stands and what its bytes are
(SHA-256); no text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from capt_local.batch.asking import Asking
from capt_local.batch.inputs import WHAT, Input
from capt_local.batch.pieces import Piece
from capt_local.batch.records import InputChanged, Record, TemplateFailed
from capt_local.strict.problems import NotReadable

_DIGEST = 32  # bytes


class Index:
    """Where records stand.

    Attributes:
        places: of the records, by id, in order.
    """

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self._where = array("Q")  # number, start, size
        self._digests = bytearray()

    def add(self, piece: Piece, id: str) -> None:
        """Adds the next record."""
        self.places[id] = len(self.places)
        self._where.extend((piece.number, piece.start, len(piece.data)))
        self._digests += hashlib.sha256(piece.data).digest()

    def where(self, place: int) -> tuple[int, int, int]:
        """Number, start and size of a record; IndexError if there is none."""
        if not 0 <= place < len(self.places):
            raise IndexError(place)
        number, start, size = self._where[3 * place : 3 * place + 3]
        return number, start, size

    def number_of(self, id: str) -> int:
        """The number of a record by its id."""
        return self.where(self.places[id])[0]

    def digest(self, place: int) -> bytes:
        """SHA-256 of the bytes of a record."""
        return bytes(self._digests[_DIGEST * place : _DIGEST * (place + 1)])


class Source:
    """An input that was checked. Its order is that of the input; places count from 0.

    Attributes:
        kind: of the input.
        ids: of all records, in order; no two alike.
        digest: SHA-256 of the whole input (of a folder: of the names and digests of its files).
        notices: what the user should be told.
    """

    def __init__(self, held: Input, asking: Asking, index: Index, notices: Sequence[str]) -> None:
        """See `checking.check_input`."""
        self.kind = held.kind
        self.ids: Sequence[str] = tuple(index.places)
        self.digest = held.digest
        self.notices = tuple(notices)
        self._held = held
        self._asking = asking
        self._index = index
        self._stamp = held.stamp()

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.ids)

    def place(self, id: str) -> int | None:
        """Where the record with an id stands; None if there is none."""
        return self._index.places.get(id)

    def record(self, place: int) -> Record:
        """Reads a record again.

        Args:
            place: 0 to `len(self) - 1`.

        Raises:
            InputChanged: its bytes are not those that were checked, or cannot be read.
            TemplateFailed: the template takes too much now.
            IndexError: there is no such record.
        """
        number, start, size = self._index.where(place)
        unit = self._held.unit
        try:
            data = self._held.again(start, size)
        except OSError as error:
            raise InputChanged(
                f"{WHAT}, {unit} {number}: it can no longer be read: "
                f"{error.strerror or 'no access'}."
            ) from None
        found = hashlib.sha256(data).digest()
        if found != self._index.digest(place):
            raise InputChanged(
                f"{WHAT}, {unit} {number}: it has changed since the input was checked."
            )
        try:
            fields = self._held.fields(Piece(number, start, data))
            return self._asking.record(number, fields, found.hex())
        except NotReadable as error:  # tells nothing of what stands in the record
            raise TemplateFailed(f"{WHAT}, {unit} {number}: {error}.") from None

    def changed(self) -> str | None:
        """What to tell at the end of a run if the input is not as it was; None if it is.

        Records that were changed are refused one by one; those that were added show only here.
        """
        if self._held.stamp() == self._stamp:
            return None
        return f"{WHAT} has changed since it was checked; what was added to it was not read."

    def line(self, place: int) -> tuple[int, str]:
        """Where a record was when the input was checked, and SHA-256 of its bytes in hexadecimal.

        Args:
            place: 0 to `len(self) - 1`.
        """
        return self._index.where(place)[0], self._index.digest(place).hex()

    def lines(self) -> Iterator[tuple[int, str, str]]:
        """Line, id and SHA-256 of each record, as `line` has them."""
        for place, id in enumerate(self.ids):
            number, sha256 = self.line(place)
            yield number, id, sha256

    def how(self) -> dict[str, Any]:
        """What decides the prompt of a record besides its bytes, for a fingerprint; no text."""
        return {"format": str(self.kind), **self._held.how(), **self._asking.described()}

    def describe(self) -> dict[str, Any]:
        """What the input is, for the manifest of a run: no text, no name, no id."""
        return {**self.how(), "records": len(self), "sha256": self.digest}
