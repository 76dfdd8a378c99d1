"""What one method made of one item: the record that is kept, summed up and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capt_local.errors import UsageError
from capt_local.evaluate.figures.metrics import Outcome

# Why an item failed, as it stands in journals and tables.
DOES_NOT_FIT = "does not fit"
REFUSED = "refused"
NOT_FINITE = "not finite"
MODEL = "model error"
# These would fail again in the same way; the others are tried again when a run is resumed.
LASTING = frozenset({DOES_NOT_FIT, REFUSED})


@dataclass(frozen=True, slots=True)
class Result:
    """One item under one method; holds no text.

    Attributes:
        task: name of the task.
        method: name of the method.
        item: id of the item.
        outcome: the figures; None when the item failed.
        failed: why there is no outcome; "" when there is one.
        tokens: of the answers, of the choices that were weighed, or of the text, in the leading
            model's tokens; 0 where a choice is constrained.
        decoded: tokens that all models together have decoded for it, prompts included.
        seconds: all models and all samples.
        cut: whether the input was cut on request.
        unfinished: answers that were ended by the limit on their length.
    """

    task: str
    method: str
    item: str
    outcome: Outcome | None = None
    failed: str = ""
    tokens: int = 0
    decoded: int = 0
    seconds: float = 0.0
    cut: bool = False
    unfinished: int = 0

    def __post_init__(self) -> None:
        """Refuses a result that is neither an outcome nor a failure."""
        if (self.outcome is None) != bool(self.failed):
            raise UsageError("A result is either an outcome or a failure.")

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, method and item: there is one result for each."""
        return self.task, self.method, self.item

    def as_object(self) -> dict[str, Any]:
        """For a line of the journal."""
        line: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        if self.outcome is not None:
            line |= {
                "values": dict(self.outcome.values),
                "predicted": self.outcome.predicted,
                "expected": self.outcome.expected,
            }
        return line

    @classmethod
    def from_object(cls, value: Any) -> Result:
        """Reads a line of the journal.

        Raises:
            ValueError: it is not one.
        """
        if not isinstance(value, dict):
            raise ValueError("not an object")
        named = _FIELDS if value.get("failed") else {**_FIELDS, **_OUTCOME}
        if set(value) != set(named):
            raise ValueError("other fields")
        if not all(type(value[name]) in kinds for name, kinds in named.items()):
            raise ValueError("a field has the wrong type")
        plain = {name: value[name] for name in _FIELDS}
        try:
            outcome = None if value["failed"] else _outcome(value)
            return cls(**plain, outcome=outcome)
        except UsageError as error:
            raise ValueError("figures that make no sense") from error


def _outcome(line: Mapping[str, Any]) -> Outcome:
    if not all(type(number) in (int, float) for number in line["values"].values()):
        raise ValueError("a figure is not a number")
    places = [*line["predicted"], *line["expected"]]
    if not all(type(place) is int and place >= 0 for place in places):
        raise ValueError("a choice is not a place")
    return Outcome(line["values"], tuple(line["predicted"]), tuple(line["expected"]))


_FIELDS: Mapping[str, tuple[type, ...]] = {
    "task": (str,),
    "method": (str,),
    "item": (str,),
    "failed": (str,),
    "tokens": (int,),
    "decoded": (int,),
    "seconds": (int, float),
    "cut": (bool,),
    "unfinished": (int,),
}
_OUTCOME: Mapping[str, tuple[type, ...]] = {
    "values": (dict,),
    "predicted": (list,),
    "expected": (list,),
}
