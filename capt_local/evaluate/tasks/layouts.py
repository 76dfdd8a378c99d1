"""Layouts: how rows of files that others made become items. A layout is a `task.toml`.

Those of MedNLI, RadQA and CLIP come with the package, so that holders of these data sets need one
line in their folder: `layout = "mednli"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from capt_local.evaluate.reading.fields import Fields, parse_toml
from capt_local.evaluate.reading.rows import Format, Row, listed, plain, shown
from capt_local.evaluate.tasks.items import MAX_TOKENS, MEASURES, Item, Kind, Measure, joined_labels
from capt_local.strict.files import read_bytes
from capt_local.strict.problems import NotReadable

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

    def item(self, row: Row) -> Item:
        """The item of a row.

        Raises:
            NotReadable: a value is missing, or not what the layout says.
        """
        row = self._listed(row)
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
class Description:
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


def read_description(folder: Path, what: str) -> Description:
    """Reads the `task.toml` of a folder.

    Raises:
        UsageError: it is missing, no TOML, or names an unknown layout.
    """
    name = f"{what}, {DESCRIPTION}"
    data = read_bytes(folder / DESCRIPTION, name)
    values = parse_toml(data, name).everything()
    shipped = values.pop("layout", None)
    if shipped is None:
        return Description(folder, name, values, data)
    if shipped not in layout_names():
        Fields({}, name).fail("layout", f"must be one of {', '.join(layout_names())}")
    base = (_shipped() / f"{shipped}.toml").read_bytes()
    values = parse_toml(base, f"The layout {shipped}").everything() | values
    return Description(folder, name, values, base + data)


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
        )
        paths.done()
        fields.done()
        if layout.choices and layout.choices_path:
            fields.fail("choices", "stands there twice, also as fields.choices")
        if layout.measure is Measure.LABELS and not layout.no_answer:
            fields.fail("no_answer", "is missing: what is said where no label applies")
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
