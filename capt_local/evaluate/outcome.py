"""What one method made of one item: the record that is kept, summed up and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Why an item failed, as it stands in journals and tables.
DOES_NOT_FIT = "does not fit"
REFUSED = "refused"
NOT_FINITE = "not finite"
MODEL = "model error"
# These would fail again in the same way; the others are tried again when a run is resumed.
LASTING = frozenset({DOES_NOT_FIT, REFUSED})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One item under one method; holds no text.

    Attributes:
        task: name of the task.
        method: name of the method.
        item: id of the item.
        failed: why there is no result; "" when there is one.
        named: indices of the choices that the answer names: one at most for a classification,
            any number for labels.
        scores: the rest of the result, by metric: ROUGE and the like for a generation, `nats` and
            `bytes` for a text.
        tokens: of the answers, or of the text, in the leading model's tokens.
        decoded: tokens that all models together have decoded for it, prompts included.
        seconds: all models and all samples.
        cut: whether the input was cut on request.
        unfinished: answers that were ended by the limit on their length.
    """

    task: str
    method: str
    item: str
    failed: str = ""
    named: tuple[int, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    decoded: int = 0
    seconds: float = 0.0
    cut: bool = False
    unfinished: int = 0

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, method and item: there is one outcome of each."""
        return self.task, self.method, self.item

    def as_object(self) -> dict[str, Any]:
        """For a line of the journal."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_object(cls, value: Any) -> Outcome:
        """Reads a line of the journal.

        Raises:
            ValueError: it is not one.
        """
        if not isinstance(value, dict) or set(value) != set(_FIELDS):
            raise ValueError("not an outcome")
        if not all(type(value[name]) in kinds for name, kinds in _FIELDS.items()):
            raise ValueError("a field has the wrong type")
        numbers = [value["seconds"], *value["scores"].values()]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError("a number is not one")
        if not all(type(index) is int and index >= 0 for index in value["named"]):
            raise ValueError("a choice is not an index")
        return cls(**{**value, "named": tuple(value["named"])})


_FIELDS: Mapping[str, tuple[type, ...]] = {
    "task": (str,),
    "method": (str,),
    "item": (str,),
    "failed": (str,),
    "named": (list, tuple),
    "scores": (dict,),
    "tokens": (int,),
    "decoded": (int,),
    "seconds": (int, float),
    "cut": (bool,),
    "unfinished": (int,),
}
