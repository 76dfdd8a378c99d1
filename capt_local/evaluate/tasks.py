"""Tasks: a file of JSON Lines, or a folder with a `task.toml`; both become the same items."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from capt_local.bundles.manifest import NAME
from capt_local.errors import UsageError
from capt_local.evaluate.items import (
    MAX_TOKENS,
    MEASURES,
    Item,
    Kind,
    Measure,
    measure_of,
    problem_of,
    read_records,
)
from capt_local.evaluate.layouts import (
    Format,
    Layout,
    TaskDescription,
    plain,
    read_description,
    read_rows,
)
from capt_local.strict_json import NotReadable, Problems, lines, read_bytes


@dataclass(frozen=True, slots=True)
class Task:
    """Items of one kind.

    Attributes:
        name: short, for tables.
        kind: of all items.
        items: at least one, in the order of the file.
        measure: what answers are measured by.
        licence: of the items.
        style: name or path of the prompt style that the task asks for; "" for none.
        max_tokens: the longest answer.
        no_answer: for spans the answer that says that there is none; for labels the answer that
            says that none applies.
        aliases: further words that name a choice, by the choice in the values.
        questions: for labels: a yes/no question for each, put one by one instead of asking for a
            list; empty: the list is asked for.
        digest: SHA-256 in hexadecimal over all files that the items come from.
        total: how many items there were before `limit`.
        choices: all choices of all items, in the order of their first appearance.
        same_choices: whether every item has the same choices, so that they are classes.

    Raises:
        UsageError: the items are not of the kind, or two share an id.
    """

    name: str
    kind: Kind
    items: tuple[Item, ...]
    measure: Measure
    licence: str = ""
    style: str = ""
    max_tokens: int = 512
    no_answer: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    total: int = 0
    choices: tuple[str, ...] = field(init=False)
    same_choices: bool = field(init=False)

    def __post_init__(self) -> None:
        """Checks that everything fits together."""
        each = dict.fromkeys(item.choices for item in self.items)
        found = dict.fromkeys(choice for choices in each for choice in choices)
        object.__setattr__(self, "choices", tuple(found))
        object.__setattr__(self, "same_choices", len(each) == 1)
        if not NAME.fullmatch(self.name):
            raise UsageError(
                "The name of a task must be 1 to 64 letters, digits, '.', '-' or '_', first a "
                "letter or digit."
            )
        if not self.items:
            raise UsageError("A task needs at least one item.")
        if self.measure not in MEASURES[self.kind]:
            raise UsageError(f"A {self.kind} task cannot be measured by {self.measure}.")
        if self.max_tokens < 1:
            raise UsageError("The longest answer of a task must be at least one token.")
        for number, item in enumerate(self.items, 1):
            problem = problem_of(item, self.measure, self.no_answer)
            if problem:
                raise UsageError(f"Item {number} of a task: {problem}.")
        if len({item.id for item in self.items}) < len(self.items):
            raise UsageError("Two items of a task have the same id.")


def read_task(
    place: Path, *, limit: int | None = None, seed: int = 0, what: str = "The task file"
) -> Task:
    """Reads a task.

    Args:
        place: a `.jsonl` file, or a folder with a `task.toml`.
        limit: only so many items, drawn at random; their order is kept.
        seed: of the draw.
        what: how errors call it; its name may be a patient's.

    Raises:
        UsageError: it cannot be read, or lines are not as they should be; the first is told with
            its number, and how many more there are.
    """
    if limit is not None and limit < 1:
        raise UsageError("A task needs a limit of at least 1 item.")
    if not place.is_dir():
        return _drawn(_of_lines(place, what), limit, seed)
    return _drawn(_of_folder(read_description(place, what), what), limit, seed)


def read_examples(place: Path, *, what: str = "The task file") -> Task | None:
    """The examples that the `task.toml` of a folder names, read as its items are.

    Args:
        place: as for `read_task`.
        what: how errors call it.

    Returns:
        None for a file, and where the folder has no examples.

    Raises:
        UsageError: as `read_task`.
    """
    if not place.is_dir():
        return None
    description = read_description(place, what)
    return _of_folder(description, what, examples=True) if description.has_examples else None


def _of_lines(place: Path, what: str) -> Task:
    data = read_bytes(place, what)
    problems = Problems(what)
    records = read_records(data, problems)
    if not records:
        problems.fail("it holds no items")
    first = records[0]
    if not NAME.fullmatch(first.task):
        problems.fail("\"task\" must be 1 to 64 letters, digits, '.', '-' or '_'")
    return Task(
        name=first.task,
        kind=first.kind,
        items=tuple(record.item for record in records),
        measure=measure_of(first.kind),
        licence="; ".join(dict.fromkeys(record.licence for record in records if record.licence)),
        max_tokens=MAX_TOKENS[first.kind],
        digest=hashlib.sha256(data).hexdigest(),
        total=len(records),
    )


def _of_folder(description: TaskDescription, what: str, *, examples: bool = False) -> Task:
    layout = description.layout(examples=examples)
    data = read_bytes(layout.file, what)
    ids = read_bytes(layout.only, f"{what}, the ids that count") if layout.only else b""
    problems = Problems(what, "row" if layout.form is Format.JSON else "line")
    items = _items(layout, data, ids, problems)
    if not items:
        problems.fail("it holds no items")
    parts = (hashlib.sha256(part).digest() for part in (description.data, data, ids))
    return Task(
        name=layout.keys.name,
        kind=layout.keys.kind,
        items=tuple(items),
        measure=layout.measure,
        licence=layout.keys.licence,
        style=layout.keys.style,
        max_tokens=layout.keys.max_tokens or MAX_TOKENS[layout.keys.kind],
        no_answer=layout.keys.no_answer,
        aliases=layout.keys.aliases,
        questions=layout.keys.questions,
        digest=hashlib.sha256(b"".join(parts)).hexdigest(),
        total=len(items),
    )


def _items(layout: Layout, data: bytes, ids: bytes, problems: Problems) -> list[Item]:
    counting = {line.strip() for _, line in lines(ids)}
    found: dict[str, Item] = {}
    rows = read_rows(data, layout.form, layout.keys.rows, problems)
    for number, row in zip((row.number for row in rows), layout.prepared(rows), strict=True):
        try:
            if isinstance(row, NotReadable):
                raise row
            if layout.only and plain(row.values(layout.keys.only.key)[0]).encode() not in counting:
                continue
            item = layout.item(row)
            problem = problem_of(item, layout.measure, layout.keys.no_answer)
            if problem or item.id in found:
                raise NotReadable(problem or "this id stood on a line before")
        except NotReadable as error:
            problems.add(number, error)
        else:
            found[item.id] = item
    problems.raise_first()
    return list(found.values())


def _drawn(task: Task, limit: int | None, seed: int) -> Task:
    if limit is None or limit >= len(task.items):
        return task
    places = sorted(random.Random(seed).sample(range(len(task.items)), limit))
    return replace(task, items=tuple(task.items[place] for place in places))
