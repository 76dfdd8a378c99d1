"""Examples to show before a question: fixed ones, or those nearest to it."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Any

from capt_local.errors import UsageError
from capt_local.evaluate.extra import library
from capt_local.evaluate.tasks.items import Item, Kind, folded
from capt_local.evaluate.tasks.task import Task


class ShotsBy(StrEnum):
    """Which examples are shown."""

    FIXED = "fixed"  # the first of the file
    NEAREST = "nearest"  # the nearest by TF-IDF, the nearest last


class Shots:
    """Chooses examples.

    Args:
        examples: a task with the examples.
        count: how many to show.
        by: which.

    Raises:
        UsageError: there are fewer examples, or they are prose.
    """

    def __init__(self, examples: Task, count: int, by: ShotsBy = ShotsBy.FIXED) -> None:
        if examples.kind is Kind.PERPLEXITY:
            raise UsageError("The file of examples holds texts without answers.")
        if not 1 <= count <= len(examples.items):
            raise UsageError(
                f"{count} examples are asked for, but the file of examples has "
                f"{len(examples.items)}; ask for at least 1 and no more."
            )
        self.examples = examples
        self.count = count
        self.by = by

    def of(self, item: Item, task: Task) -> list[Item]:
        """The examples for an item, in the order in which they are shown.

        The item itself and any example with the same input are never among them.

        Raises:
            UsageError: too few are left, they are of another kind, or they hold no words.
        """
        if self.examples.kind is not task.kind:
            raise UsageError(f"The examples are for {self.examples.kind}, the task is {task.kind}.")
        places = self._places(item) if self.by is ShotsBy.NEAREST else range(len(self._inputs))
        same_file = self.examples is task or self.examples.digest == task.digest != ""
        own = folded(item.input)
        left = [
            place
            for place in places
            if self._inputs[place] != own
            and not (same_file and self.examples.items[place].id == item.id)
        ]
        if len(left) < self.count:
            raise UsageError(
                f"{self.count} examples are asked for, but only {len(left)} are not the question "
                "itself; ask for fewer."
            )
        chosen = left[: self.count]
        if self.by is ShotsBy.NEAREST:
            chosen.reverse()
        return [self.examples.items[place] for place in chosen]

    def _places(self, item: Item) -> list[int]:
        """All examples, the nearest first, equals in the order of the file."""
        vectorizer, matrix = self._index
        # Rows have length 1, so the product is the cosine.
        near = (matrix @ vectorizer.transform([item.input]).T).toarray()[:, 0]
        return sorted(range(len(near)), key=lambda place: (-near[place], place))

    @cached_property
    def _inputs(self) -> list[str]:
        return [folded(item.input) for item in self.examples.items]

    @cached_property
    def _index(self) -> tuple[Any, Any]:
        make = library("sklearn.feature_extraction.text").TfidfVectorizer
        vectorizer = make(sublinear_tf=True)
        try:
            return vectorizer, vectorizer.fit_transform(
                [item.input for item in self.examples.items]
            )
        except ValueError:
            raise UsageError("The examples hold no words to compare; use fixed ones.") from None
