"""Items as they stand in JSON Lines: `{id, task, kind, instruction, input, reference, ...}`.

A text to predict is `{id, task, kind: "perplexity", text}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.evaluate.tasks.items import MEASURES, Item, Kind, Measure, problem_of
from capt_local.strict.json import lines, parse_object
from capt_local.strict.problems import NotReadable, Problems


@dataclass(frozen=True, slots=True)
class Record:
    """One line.

    Attributes:
        task: the name of its task.
        kind: of the item.
        licence: of the item; "" where none is given.
        item: what stands there.
    """

    task: str
    kind: Kind
    licence: str
    item: Item


def read_records(data: bytes, problems: Problems) -> list[Record]:
    """The records of a file.

    Args:
        data: the file.
        problems: raises what is wrong, after all lines have been read.

    Raises:
        UsageError: a line is not a record, an id stands there twice, or lines are not of one task.
    """
    found: list[Record] = []
    seen: set[str] = set()
    for number, line in lines(data):
        try:
            record = _record(parse_object(line))
            if record.item.id in seen:
                raise NotReadable('this "id" stood on a line before')
            if found and record.kind is not found[0].kind:
                raise NotReadable('"kind" is not that of the lines before')
            if found and record.task != found[0].task:
                raise NotReadable('"task" is not that of the lines before')
        except NotReadable as error:
            problems.add(number, error)
        else:
            seen.add(record.item.id)
            found.append(record)
    problems.settle()
    return found


def _record(value: Mapping[str, object]) -> Record:
    kind = _kind(value)
    prose = kind is Kind.PERPLEXITY
    item = Item(
        id=identifier(value.get("id")),
        instruction="" if prose else _text(value, "instruction"),
        input=_text(value, "text" if prose else "input"),
        reference="" if prose else _text(value, "reference"),
        choices=() if prose else texts(value.get("choices", []), "choices"),
    )
    problem = problem_of(item, measure_of(kind))
    if problem:
        raise NotReadable(problem)
    licence = _text(value, "licence") if "licence" in value else ""
    return Record(_text(value, "task"), kind, licence, item)


def measure_of(kind: Kind) -> Measure:
    """What a kind is measured by where nothing else is asked for."""
    return MEASURES[kind][0]


def identifier(value: object) -> str:
    """An id: a text or a whole number.

    Raises:
        NotReadable: it is neither.
    """
    if value is None:
        raise NotReadable('no "id"')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise NotReadable('"id" must be a text or a whole number')
    return str(value)


def texts(value: object, key: str) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        NotReadable: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise NotReadable(f'"{key}" must be a list of texts')
    return tuple(value)


def _kind(value: Mapping[str, object]) -> Kind:
    try:
        return Kind(_text(value, "kind"))
    except ValueError:
        raise NotReadable(f'"kind" must be one of {", ".join(Kind)}') from None


def _text(value: Mapping[str, object], key: str) -> str:
    if key not in value:
        raise NotReadable(f'no "{key}"')
    found = value[key]
    if not isinstance(found, str):
        raise NotReadable(f'"{key}" must be a text')
    return found
