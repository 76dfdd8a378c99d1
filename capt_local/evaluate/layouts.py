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
from typing import NoReturn

from capt_local.errors import UsageError
from capt_local.evaluate.fields import Table
from capt_local.evaluate.items import MAX_TOKENS, MEASURES, Item, Kind, Measure, joined_labels
from capt_local.strict_json import (
    NotReadable,
    Problems,
    check_characters,
    lines,
    parse_json,
    parse_object,
    read_bytes,
    utf8,
)

_LINE = re.compile(r"at line (\d+)")


class Fields(Table):
    """One table of such a file, whose errors are the user's and name no path.

    Args:
        values: the table as parsed.
        what: how errors call the file.
        name: of the table; empty for the top.
    """

    def __init__(self, values: dict[str, object], what: str, name: str = "") -> None:
        super().__init__(values, Path(what), name)
        self._what = what

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the error for a key.

        Raises:
            UsageError: always.
        """
        place = f"{self._name}.{key}" if self._name else key
        raise UsageError(f"{self._what}: {place} {problem}.")

    def table(self, key: str) -> Fields:
        """A table below this one; empty if there is none."""
        found = self._take(key, dict)
        return Fields(found or {}, self._what, f"{self._name}.{key}" if self._name else key)

    def everything(self) -> dict[str, object]:
        """All that is left, as it stands."""
        left, self._left = self._left, {}
        return left

    def words(self) -> dict[str, str]:
        """All that is left, where each value must be a text."""
        return {key: self.text(key) for key in self.keys()}

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty if there is none."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(key, "must be a list of texts")
        return tuple(value)

    def count(self, key: str) -> int | None:
        """A whole number from 1 to a million, or None where there is no such key."""
        value = self.whole(key, 1)
        if value is not None and value > 1_000_000:
            self.fail(key, "must be at most a million")
        return value

    def inside(self, key: str, folder: Path) -> Path | None:
        """A file in the folder or below it, or None where there is no such key."""
        value = self.optional_text(key)
        if value is None:
            return None
        parts = PurePosixPath(value).parts
        path = folder / value
        outside = ".." in parts or not path.resolve().is_relative_to(folder.resolve())
        if not parts or "\\" in value or outside:
            self.fail(key, "must name a file inside the folder of the task, with '/'")
        if not path.is_file():
            self.fail(key, "names a file that is not there")
        return path


def parse_toml(data: bytes, what: str) -> Fields:
    """A TOML file as fields.

    Raises:
        UsageError: it is not TOML.
    """
    try:
        return Fields(tomllib.loads(utf8(data)), what)
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # The message itself may hold a part of the file.
        line = _LINE.search(str(error))
        raise UsageError(
            f"{what} is not TOML" + (f": see line {line.group(1)}." if line else ".")
        ) from None


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


@dataclass(frozen=True, slots=True)
class Around:
    """`${around}`: the text of a row between that of its neighbours in the same group.

    Attributes:
        group: path of what neighbours share, such as the document.
        text: path of their text; lists are joined with spaces.
        size: whole neighbours are taken up to so many bytes on each side.
    """

    group: str
    text: str
    size: int

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
            if used > self.size:
                break
            found.append(other[1])
        return found


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row becomes an item.

    Attributes:
        name: of the task.
        kind: of the items.
        measure: what answers are measured by.
        file: with the rows.
        only: a file with the ids that count, one a line; None: all rows count.
        only_path: path of what `only` lists.
        form: how rows are written.
        inside: for JSON: the path of the rows.
        id: of an item.
        instruction: of an item.
        input: of an item.
        reference: path of the right answer, or answers; "" for perplexity.
        choices: for all items.
        choices_path: path of the choices of each item; "" if all have the same.
        lists: keys whose values are lists written as text.
        labels: what values of the reference are called.
        no_answer: the reference where there is none.
        licence: of the items.
        style: see `Task`.
        max_tokens: see `Task`.
        aliases: see `Task`.
        questions: see `Task`.
        around: what each row sees of its neighbours; None: nothing.
    """

    name: str
    kind: Kind
    measure: Measure
    file: Path
    only: Path | None
    only_path: str
    form: Format
    inside: str
    id: RowTemplate
    instruction: RowTemplate
    input: RowTemplate
    reference: str
    choices: tuple[str, ...]
    choices_path: str
    lists: tuple[str, ...]
    labels: Mapping[str, str]
    no_answer: str
    licence: str
    style: str
    max_tokens: int
    aliases: Mapping[str, str]
    questions: Mapping[str, str]
    around: Around | None

    def prepared(self, rows: Sequence[Row]) -> list[Row | NotReadable]:
        """Rows with their lists read and their neighbours in sight, or what is wrong with one."""
        found: list[Row | NotReadable] = []
        for row in rows:
            try:
                found.append(self._listed(row))
            except NotReadable as error:
                found.append(error)
        return found if self.around is None else self.around.added(found)

    def item(self, row: Row) -> Item:
        """The item of a row.

        Raises:
            NotReadable: a value is missing, or not what the layout says.
        """
        references = self._references(row) if self.reference else ("",)
        choices = self.choices
        if self.choices_path:
            choices = tuple(plain(value) for value in row.values(self.choices_path))
        return Item(
            id=self.id.of(row),
            instruction=self.instruction.of(row),
            input=self.input.of(row),
            reference=references[0],
            choices=choices,
            alternatives=references[1:],
        )

    def _references(self, row: Row) -> tuple[str, ...]:
        said = [plain(value) for value in row.values(self.reference)]
        named = tuple(dict.fromkeys(self.labels.get(one, one) for one in said))
        if self.measure is Measure.LABELS:
            return (joined_labels(named, self.no_answer),)
        if not named and not self.no_answer:
            raise NotReadable("no right answer")
        return named or (self.no_answer,)

    def _listed(self, row: Row) -> Row:
        own = dict(row.scopes[0])
        for key in self.lists:
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
        return _Reader(Fields(self.values, self.what), self.folder).layout(examples)


def read_description(folder: Path, what: str) -> TaskDescription:
    """Reads the `task.toml` of a folder.

    Raises:
        UsageError: it is missing, no TOML, or names an unknown layout.
    """
    name = f"{what}, {DESCRIPTION}"
    data = read_bytes(folder / DESCRIPTION, name)
    values = parse_toml(data, name).everything()
    shipped = values.pop("layout", None)
    if shipped is None:
        return TaskDescription(folder, name, values, data)
    if shipped not in layout_names():
        Fields({}, name).fail("layout", f"must be one of {', '.join(layout_names())}")
    base = (_shipped() / f"{shipped}.toml").read_bytes()
    values = parse_toml(base, f"The layout {shipped}").everything() | values
    return TaskDescription(folder, name, values, base + data)


class _Reader:
    """Reads one description."""

    def __init__(self, fields: Fields, folder: Path) -> None:
        self._fields = fields
        self._folder = folder

    def layout(self, examples: bool) -> Layout:
        fields = self._fields
        kind = Kind(fields.choice("kind", tuple(Kind)) or fields.fail("kind", "is missing"))
        measure = fields.choice("measure", MEASURES[kind]) or MEASURES[kind][0]
        paths = fields.table("fields")
        file, only, only_path = self._files(examples)
        layout = Layout(
            name=fields.name("name"),
            kind=kind,
            measure=Measure(measure),
            file=file,
            only=only,
            only_path=only_path,
            form=self._form(file),
            inside=fields.text("rows", ""),
            id=self._template("id", paths),
            instruction=self._template("instruction", paths, needed=False),
            input=self._template("input", paths),
            reference="" if kind is Kind.PERPLEXITY else paths.text("reference"),
            choices=fields.texts("choices"),
            choices_path=paths.text("choices", ""),
            lists=fields.texts("lists"),
            labels=fields.table("labels").words(),
            no_answer=fields.text("no_answer", ""),
            licence=fields.text("licence", ""),
            style=fields.text("style", ""),
            max_tokens=fields.count("max_tokens") or MAX_TOKENS[kind],
            aliases=fields.table("aliases").words(),
            questions=fields.table("questions").words(),
            around=self._around(),
        )
        paths.done()
        fields.done()
        if layout.choices and layout.choices_path:
            fields.fail("choices", "stands there twice, also as fields.choices")
        if layout.measure is Measure.LABELS and not layout.no_answer:
            fields.fail("no_answer", "is missing: what is said where no label applies")
        if layout.questions and (
            layout.measure is not Measure.LABELS or set(layout.questions) != set(layout.choices)
        ):
            fields.fail("questions", "must have one for each of the labels in choices")
        if not set(layout.aliases.values()) <= set(layout.choices):
            fields.fail("aliases", "must stand for some of the choices")
        return layout

    def _files(self, examples: bool) -> tuple[Path, Path | None, str]:
        """The file with rows, the one with ids that count, and the path of such an id."""
        only, shots = self._fields.table("only"), self._fields.table("examples")
        key = only.text("key", "")
        if examples:
            self._fields.text("file", "")
            only.text("file", "")
            file, ids = shots.inside("file", self._folder), shots.inside("only", self._folder)
        else:
            shots.everything()
            file, ids = self._fields.inside("file", self._folder), only.inside("file", self._folder)
        only.done()
        shots.done()
        if file is None:
            (shots if examples else self._fields).fail("file", "is missing")
        if ids and not key:
            only.fail("key", "is missing: the path of what the file of ids lists")
        return file, ids, key

    def _around(self) -> Around | None:
        table = self._fields.table("around")
        group, text = table.optional_text("group"), table.optional_text("text")
        size = table.count("bytes")
        table.done()
        if group is None and text is None and size is None:
            return None
        if group is None or text is None or size is None:
            self._fields.fail("around", "needs group, text and bytes")
        return Around(group, text, size)

    def _form(self, file: Path) -> Format:
        form = self._fields.choice("format", tuple(Format))
        form = form or file.suffix.removeprefix(".").lower()
        if form not in tuple(Format):
            self._fields.fail("format", f"is missing; it is one of {', '.join(Format)}")
        return Format(form)

    def _template(self, key: str, paths: Fields, *, needed: bool = True) -> RowTemplate:
        text, path = self._fields.optional_text(key), paths.optional_text(key)
        if text is not None and path is not None:
            self._fields.fail(key, f"stands there twice, also as fields.{key}")
        if text is None and path is None and needed:
            self._fields.fail(f"fields.{key}", "is missing")
        template = RowTemplate(text or "" if path is None else f"${{{path}}}")
        if not template.is_valid():
            self._fields.fail(key, "has a $ that is no place ${path}; a dollar sign itself is $$")
        return template


def _shipped() -> Traversable:
    return resources.files("capt_local") / "data" / "layouts"
