"""Files that others made, read as items: a layout is a `task.toml`.

Rows are JSON Lines, one JSON value with rows inside, or CSV. A value is named by a path: `a.b` is
`b` inside `a`, and `a[]` is every member of the list `a`. Layouts of MedNLI, RadQA and CLIP come
with the package, so that holders of these data sets need one line in their folder:
`layout = "mednli"`.
"""

from __future__ import annotations

import ast
import csv
import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template
from typing import Annotated, NoReturn, TypeVar

import msgspec

from capt_local.bundles.manifest import NAME
from capt_local.errors import UsageError
from capt_local.evaluate.items import MEASURES, Item, Kind, Measure, joined_labels
from capt_local.strict_json import (
    NotReadable,
    Problems,
    check_characters,
    convert,
    form,
    lines,
    parse_json,
    parse_object,
    read_bytes,
    utf8,
)

_LINE = re.compile(r"at line (\d+)")
_File = TypeVar("_File")
Name = Annotated[str, form(NAME.pattern, "must be 1 to 64 letters, digits, '.-_'")]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


def parse_toml(data: bytes, what: str) -> dict[str, object]:
    """A TOML file.

    Raises:
        UsageError: it is not TOML.
    """
    try:
        return tomllib.loads(utf8(data))
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # The message itself may hold a part of the file.
        line = _LINE.search(str(error))
        raise UsageError(
            f"{what} is not TOML" + (f": see line {line.group(1)}." if line else ".")
        ) from None


def as_struct(values: dict[str, object], kind: type[_File], what: str) -> _File:
    """A TOML file as a structure.

    Raises:
        UsageError: a key is unknown, missing, or has the wrong kind of value.
    """
    try:
        return convert(values, kind)
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None


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


DESCRIPTION = "task.toml"


class RowTemplate(Template):
    """A text with places `${path}`, filled in one pass: a note may hold any sign."""

    idpattern = r"(?!)"  # `$path` without braces is a mistake
    braceidpattern = r"[^{}$]+"

    def of(self, row: Row) -> str:
        """The text for a row; lists of texts are joined with spaces.

        Raises:
            NotReadable: a value is missing, or not a text.
        """
        found = {}
        for path in self.get_identifiers():
            values = row.values(path)
            try:
                found[path] = " ".join(plain(value) for value in values)
            except NotReadable as error:
                raise NotReadable(f'"{shown(path)}": {error}') from None
        return self.substitute(found)


class Around(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`${around}`: the text of a row between that of its neighbours in the same group.

    Attributes:
        group: path of what neighbours share, such as the document.
        text: path of their text; lists are joined with spaces.
        bytes: whole neighbours are taken up to so many bytes on each side.
    """

    group: str
    text: str
    bytes: Count

    def added(self, rows: Sequence[Row | NotReadable]) -> list[Row | NotReadable]:
        """The rows with `around` as the outermost value."""
        known: list[tuple[str, str] | None] = []
        for row in rows:
            known.append(None if isinstance(row, NotReadable) else self._known(row))
        found: list[Row | NotReadable] = []
        for place, row in enumerate(rows):
            if isinstance(row, NotReadable) or known[place] is None:
                found.append(row)
                continue
            before = self._side(known, place, range(place - 1, -1, -1))
            after = self._side(known, place, range(place + 1, len(rows)))
            own = known[place]
            texts = [*reversed(before), own[1] if own else "", *after]
            found.append(Row(row.number, (*row.scopes, {"around": " ".join(texts)})))
        return found

    def _known(self, row: Row) -> tuple[str, str] | None:
        try:
            text = " ".join(plain(value) for value in row.values(self.text))
            return plain(row.values(self.group)[0]), text
        except NotReadable:
            return None  # said where the item is made

    def _side(
        self, known: Sequence[tuple[str, str] | None], place: int, places: Iterable[int]
    ) -> list[str]:
        own, used = known[place], 0
        found: list[str] = []
        for other in (known[number] for number in places):
            if own is None or other is None or other[0] != own[0]:
                break
            used += len(other[1].encode()) + 1
            if used > self.bytes:
                break
            found.append(other[1])
        return found


class _Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fields]`: paths of values in a row."""

    id: str | None = None
    instruction: str | None = None
    input: str | None = None
    reference: str | None = None
    choices: str = ""


class _Only(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[only]`: rows whose `key` is a line of `file`."""

    key: str = ""
    file: str | None = None


class _Examples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[examples]`: the file of few-shot examples, and of their ids."""

    file: str | None = None
    only: str | None = None


class LayoutFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a `task.toml`; see docs/tasks.md."""

    name: Name
    kind: Kind
    file: str | None = None
    measure: Measure | None = None
    format: Format | None = None
    rows: str = ""
    id: str | None = None
    instruction: str | None = None
    input: str | None = None
    fields: _Paths = _Paths()
    choices: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    aliases: dict[str, str] = {}
    questions: dict[str, str] = {}
    only: _Only = _Only()
    examples: _Examples = _Examples()
    around: Around | None = None
    no_answer: str = ""
    licence: str = ""
    style: str = ""
    max_tokens: Count | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows become items.

    Attributes:
        keys: of the `task.toml`.
        measure: what answers are measured by.
        file: with the rows.
        only: a file with the ids that count, one a line; None: all rows count.
        form: how rows are written.
        id: of an item.
        instruction: of an item.
        input: of an item.
    """

    keys: LayoutFile
    measure: Measure
    file: Path
    only: Path | None
    form: Format
    id: RowTemplate
    instruction: RowTemplate
    input: RowTemplate

    def prepared(self, rows: Sequence[Row]) -> list[Row | NotReadable]:
        """Rows with their lists read and their neighbours in sight, or what is wrong with one."""
        found: list[Row | NotReadable] = []
        for row in rows:
            try:
                found.append(self._listed(row))
            except NotReadable as error:
                found.append(error)
        around = self.keys.around
        return found if around is None else around.added(found)

    def item(self, row: Row) -> Item:
        """The item of a row.

        Raises:
            NotReadable: a value is missing, or not what the layout says.
        """
        keys = self.keys
        path = "" if keys.kind is Kind.PERPLEXITY else keys.fields.reference or ""
        references = self._references(row.values(path)) if path else ("",)
        choices = keys.choices
        if keys.fields.choices:
            choices = tuple(plain(value) for value in row.values(keys.fields.choices))
        return Item(
            id=self.id.of(row),
            instruction=self.instruction.of(row),
            input=self.input.of(row),
            reference=references[0],
            choices=choices,
            alternatives=references[1:],
        )

    def _references(self, values: Sequence[object]) -> tuple[str, ...]:
        labels, no_answer = self.keys.labels, self.keys.no_answer
        named = tuple(dict.fromkeys(labels.get(one, one) for one in map(plain, values)))
        if self.measure is Measure.LABELS:
            return (joined_labels(named, no_answer),)
        if not named and not no_answer:
            raise NotReadable("no right answer")
        return named or (no_answer,)

    def _listed(self, row: Row) -> Row:
        own = dict(row.scopes[0])
        for key in self.keys.lists:
            try:
                own[key] = listed(own.get(key))
            except NotReadable as error:
                raise NotReadable(f'"{shown(key)}": {error}') from None
        return Row(row.number, (own, *row.scopes[1:]))


def layout_names() -> list[str]:
    """The layouts that come with the package."""
    return sorted(path.name.removesuffix(".toml") for path in _shipped().iterdir())


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """A `task.toml` as it stands, with what it takes from a layout of the package.

    Attributes:
        folder: that it is in.
        what: how errors call it.
        values: by key.
        data: all bytes that describe the task.
    """

    folder: Path
    what: str
    values: dict[str, object]
    data: bytes

    @property
    def has_examples(self) -> bool:
        """Whether it names examples to show."""
        return "examples" in self.values

    def layout(self, *, examples: bool = False) -> Layout:
        """What it says.

        Args:
            examples: whether it is for the examples, which stand in files of their own.

        Raises:
            UsageError: it is broken, or a file that it names is not there.
        """
        keys = as_struct(self.values, LayoutFile, self.what)

        def fail(problem: str) -> NoReturn:
            raise UsageError(f"{self.what}: {problem}.")

        measure = keys.measure or MEASURES[keys.kind][0]
        if measure not in MEASURES[keys.kind]:
            fail(f"measure must be one of {', '.join(MEASURES[keys.kind])}")
        if keys.choices and keys.fields.choices:
            fail("choices stands there twice, also as fields.choices")
        if keys.fields.reference is None and keys.kind is not Kind.PERPLEXITY:
            fail("fields.reference is missing")
        if measure is Measure.LABELS and not keys.no_answer:
            fail("no_answer is missing: what is said where no label applies")
        if keys.questions and (
            measure is not Measure.LABELS or set(keys.questions) != set(keys.choices)
        ):
            fail("questions must have one for each of the labels in choices")
        if not set(keys.aliases.values()) <= set(keys.choices):
            fail("aliases must stand for some of the choices")
        if (keys.only.file or keys.examples.only) and not keys.only.key:
            fail("only.key is missing: the path of what the file of ids lists")
        if examples:
            file = self._file("examples.file", keys.examples.file)
            only = self._file("examples.only", keys.examples.only)
        else:
            file = self._file("file", keys.file)
            only = self._file("only.file", keys.only.file)
        if file is None:
            fail(f"{'examples.' if examples else ''}file is missing")
        form = keys.format or file.suffix.removeprefix(".").lower()
        if form not in tuple(Format):
            fail(f"format is missing; it is one of {', '.join(Format)}")
        templates = {}
        for key in ("id", "instruction", "input"):
            text, path = getattr(keys, key), getattr(keys.fields, key)
            if text is not None and path is not None:
                fail(f"{key} stands there twice, also as fields.{key}")
            if text is None and path is None and key != "instruction":
                fail(f"fields.{key} is missing")
            templates[key] = RowTemplate(text or "" if path is None else f"${{{path}}}")
            if not templates[key].is_valid():
                fail(f"{key} has a $ that is no place ${{path}}; a dollar sign itself is $$")
        return Layout(keys, measure, file, only, Format(form), **templates)

    def _file(self, key: str, name: str | None) -> Path | None:
        """A file in the folder or below it.

        Raises:
            UsageError: it is elsewhere, or not there.
        """
        if name is None:
            return None
        parts, path = PurePosixPath(name).parts, self.folder / name
        outside = ".." in parts or not path.resolve().is_relative_to(self.folder.resolve())
        if not parts or "\\" in name or outside:
            raise UsageError(
                f"{self.what}: {key} must name a file inside the folder of the task, with '/'."
            )
        if not path.is_file():
            raise UsageError(f"{self.what}: {key} names a file that is not there.")
        return path


def read_description(folder: Path, what: str) -> TaskDescription:
    """Reads the `task.toml` of a folder.

    Raises:
        UsageError: it is missing, no TOML, or names an unknown layout.
    """
    name = f"{what}, {DESCRIPTION}"
    data = read_bytes(folder / DESCRIPTION, name)
    values = parse_toml(data, name)
    shipped = values.pop("layout", None)
    if shipped is None:
        return TaskDescription(folder, name, values, data)
    if shipped not in layout_names():
        raise UsageError(f"{name}: layout must be one of {', '.join(layout_names())}.")
    base = (_shipped() / f"{shipped}.toml").read_bytes()
    values = parse_toml(base, f"The layout {shipped}") | values
    return TaskDescription(folder, name, values, base + data)


def _shipped() -> Traversable:
    return resources.files("capt_local") / "data" / "layouts"
