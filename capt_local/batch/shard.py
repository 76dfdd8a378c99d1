"""Which records of an input one of several processes takes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from capt_local.errors import UsageError

_FORM = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, from 1.

    The id of a record alone decides, so a record stays in its shard when others are added to the
    input or the order changes: what is resumed never moves to another output.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Refuses a part that is not there."""
        if not 1 <= self.index <= self.count:
            raise UsageError(f"--shard {self.index}/{self.count}: the parts are 1 to {self.count}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `i/n` names.

        Raises:
            UsageError: it names none.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise UsageError("--shard takes i/n with i from 1 to n, as in 2/8.")
        return cls(int(found[1]), int(found[2]))

    def holds(self, id: str) -> bool:
        """Whether the record of this id is one of the shard's."""
        digest = hashlib.sha256(id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"index": self.index, "count": self.count}

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.index}/{self.count}"
