"""Rows of files that others made: JSON Lines, one JSON value with rows inside, or CSV.

A row is its own keys, and those of what it stands in: a question of SQuAD sees its paragraph. A
value is named by a path: `a.b` is `b` inside `a`, and `a[]` is every member of the list `a`.
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capt_local.strict.files import utf8
from capt_local.strict.json import check_characters, lines, parse_json, parse_object
from capt_local.strict.problems import NotReadable, Problems

_LONGEST_LIST = 1 << 17


class Format(StrEnum):
    """How rows are written."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: of its line; in one JSON value, which row it is.
        scopes: its own keys, then those of what it stands in, from the inside out.
    """

    number: int
    scopes: tuple[Mapping[str, object], ...]

    def values(self, path: str) -> list[object]:
        """All values that a path leads to; one, unless it goes through lists.

        Raises:
            NotReadable: it leads nowhere.
        """
        first = path.split(".", 1)[0].removesuffix("[]")
        for scope in self.scopes:
            if path in scope:  # a column may have a dot in its name
                return [scope[path]]
            if first in scope:
                return [value for value, _ in _walk(scope, path.split("."), ())]
        raise NotReadable(f'no "{shown(path)}"')


def read_rows(data: bytes, form: Format, inside: str, problems: Problems) -> list[Row]:
    """The rows of a file.

    Args:
        data: the file.
        form: how it is written.
        inside: for JSON: the path of the rows; "" for a file that is a list.
        problems: takes lines that cannot be read.

    Raises:
        UsageError: the file as a whole is not of the form.
    """
    try:
        if form is Format.JSONL:
            return list(_jsonl(data, problems))
        if form is Format.JSON:
            return list(_json(data, inside, problems))
        return list(_csv(data, "\t" if form is Format.TSV else ",", problems))
    except NotReadable as error:
        problems.fail(str(error))


def listed(value: object) -> list[str]:
    """A list of texts that may be written as text, in JSON or as Python writes it.

    Raises:
        NotReadable: it is none.
    """
    if isinstance(value, str):
        if len(value) > _LONGEST_LIST:
            raise NotReadable("a list is too long")
        value = _parsed(value.strip())
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise NotReadable("not a list of texts")
    found = list(value)
    check_characters(found)
    return found


def plain(value: object) -> str:
    """A single value as text.

    Raises:
        NotReadable: it is empty, or holds further values.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise NotReadable("a value is missing" if value is None else "a value is not a text")


def shown(key: str) -> str:
    """A key of a task's description for an error: it may have any signs."""
    return "".join(char if char.isprintable() else "?" for char in key[:80])


def _parsed(text: str) -> object:
    """A list that is written as text; in JSON, two escapes may be one character."""
    try:
        return parse_json(text.encode())
    except NotReadable:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NotReadable("not a list") from None


def _jsonl(data: bytes, problems: Problems) -> Iterator[Row]:
    for number, line in lines(data):
        try:
            value = parse_object(line)
        except NotReadable as error:
            problems.add(number, error)
        else:
            yield Row(number, (value,))


def _json(data: bytes, inside: str, problems: Problems) -> Iterator[Row]:
    value = parse_json(data)
    found = _walk(value, inside.split(".") if inside else ["[]"], ())
    for number, (row, outer) in enumerate(found, 1):
        if isinstance(row, dict):
            yield Row(number, (row, *outer))
        else:
            problems.add(number, "not a JSON object")


def _csv(data: bytes, delimiter: str, problems: Problems) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(utf8(data), newline=""), delimiter=delimiter, strict=True)
    before, names = 0, list[str]()
    try:
        for cells in reader:
            number, before = before + 1, reader.line_num
            if not names:
                names = cells
                if len(set(names)) < len(names):
                    raise NotReadable("two columns have the same name")
            elif cells and len(cells) != len(names):
                problems.add(number, "not as many cells as the first line")
            elif cells:
                yield Row(number, (dict(zip(names, cells, strict=True)),))
    except csv.Error:
        # The message may hold a cell.
        problems.add(before + 1, "not CSV (a quotation mark, or a cell of more than 131072 signs)")


def _walk(
    value: object, steps: Sequence[str], outer: tuple[Mapping[str, object], ...]
) -> Iterator[tuple[object, tuple[Mapping[str, object], ...]]]:
    """What a path leads to, each with the objects that it stands in."""
    if not steps:
        yield value, outer
        return
    key, many = steps[0].removesuffix("[]"), steps[0].endswith("[]")
    if key:
        if not isinstance(value, dict) or key not in value:
            raise NotReadable(f'no "{shown(key)}"')
        outer = (value, *outer)
        value = value[key]
    if many and not isinstance(value, list):
        raise NotReadable(f'"{shown(key)}" is not a list')
    for one in value if many and isinstance(value, list) else [value]:
        yield from _walk(one, steps[1:], outer)
