"""Recipes: which models make a bundle, where their files lie, and under which licences.

A recipe is a TOML file like a manifest without the files. Those that travel with the package say
nothing that nobody has looked up: a revision or digest that is missing is taken from the hub at
the first use and pinned in the bundle.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from capt_local.bundle.fields import NAME, Table
from capt_local.bundle.manifest import Role, Style, count_pairs, roles
from capt_local.bundle.manifest_file import version_numbers
from capt_local.errors import ModelError, UsageError
from capt_local.hub.part import Part
from capt_local.strict.problems import NotReadable

SCHEMA = 1
_LARGEST = 1 << 16
_ENDING = ".toml"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a bundle is made of files of a hub.

    Attributes:
        id: of the recipe and the bundle.
        title: one line for people.
        version: of the bundle.
        parts: the models by role.
        description: for people.
        by_hand: what to do where a part may not be fetched; empty where all are.
        context: tokens of context to use; None is the models' own.
        card: what the bundle will say of itself, by its headings.
    """

    id: str
    title: str
    version: str
    parts: Mapping[Role, Part]
    description: str = ""
    by_hand: str = ""
    context: int | None = None
    card: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pinned(self) -> bool:
        """Whether the digest of every file is known without asking a hub."""
        return all(part.sha256 is not None for part in self.parts.values())

    def pinned(self, revisions: Mapping[str, str], digests: Mapping[str, str]) -> Recipe:
        """The same with what the user pins.

        Args:
            revisions: commits by role.
            digests: SHA-256 by role.

        Raises:
            UsageError: there is no such role.
            ModelError: a value is none that it may be, or the recipe pins another one.
        """
        parts = dict(self.parts)
        for role, value in revisions.items():
            said = self._part(role, "--revision").revision
            self._check_same(said, value, f"revision of the {role}")
            parts[role] = replace(parts[role], revision=value)
        for role, value in digests.items():
            said = self._part(role, "--sha256").sha256
            self._check_same(said, value, f"SHA-256 of the {role}")
            parts[role] = replace(parts[role], sha256=value)
        return replace(self, parts=parts)

    def _part(self, role: str, flag: str) -> Part:
        if role not in self.parts:
            known = ", ".join(self.parts)
            raise UsageError(f"{flag}: the recipe {self.id} has no such role; {known}.")
        return self.parts[role]

    def _check_same(self, said: str | None, value: str, what: str) -> None:
        if said not in (None, value):
            raise ModelError(
                f"The recipe {self.id} pins another {what} than is asked for. Write a recipe of "
                "your own to use that one."
            )


def recipes() -> list[Recipe]:
    """All that travel with the package, by their names."""
    return [read_recipe(file) for file in sorted(_folder().glob(f"*{_ENDING}"))]


def find_recipe(reference: str) -> Recipe:
    """A recipe by its name, or of a file.

    Args:
        reference: a name; or a path, which holds a separator or ends in ".toml".

    Raises:
        ModelError: there is none, or it is broken.
    """
    if reference.endswith(_ENDING) or "/" in reference or "\\" in reference:
        return read_recipe(Path(os.path.expanduser(reference)))  # also of nobody's home
    file = _folder() / f"{reference}{_ENDING}"
    if NAME.fullmatch(reference) and file.is_file():
        return read_recipe(file)
    known = ", ".join(each.stem for each in sorted(_folder().glob(f"*{_ENDING}")))
    raise ModelError(
        f"There is no recipe of that name; known: {known}. A recipe of your own is given by its "
        f"path, NAME{_ENDING}."
    )


def read_recipe(file: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        ModelError: it is missing, or broken.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ModelError(f"{file}: larger than {_LARGEST >> 10} KiB; this is not a recipe.")
        values = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or 'unreadable'}.") from None
    except (ValueError, RecursionError):  # also of a number that has too many digits
        raise ModelError(f"{file}: not TOML; this is not a recipe.") from None
    return _recipe(Table(values, file))


def _recipe(top: Table) -> Recipe:
    if top.whole("schema", 1) != SCHEMA:
        top.fail("schema", f"must be {SCHEMA}, the version of the format that this program reads")
    by_hand = top.text("by_hand", "")
    recipe = Recipe(
        id=top.name("id"),
        title=top.text("title"),
        version=top.text("version"),
        parts=_parts(top.table("models"), fetched=not by_hand),
        description=top.text("description", ""),
        by_hand=by_hand,
        context=top.whole("context", 1),
        card=_card(top.table("card")),
    )
    if version_numbers(recipe.version) is None:
        top.fail("version", "must be numbers with dots, such as 1.2")
    top.done()
    return recipe


def _card(table: Table) -> dict[str, str]:
    card = {key: table.text(key) for key in list(table.keys())}
    table.done()
    return card


def _parts(tables: Table, *, fetched: bool) -> dict[Role, Part]:
    given = tables.keys()
    if "target" not in given:
        tables.fail("target", "is missing; every bundle has a target")
    try:
        pairs = count_pairs(given)
    except NotReadable as error:
        tables.refuse(f"models: {error}.")
    return {role: _part(tables.table(role), role, fetched) for role in roles(pairs)}


def _part(table: Table, role: Role, fetched: bool) -> Part:
    part = Part(
        role=role,
        weights=table.text("weights"),
        licence=table.text("licence"),
        repository=table.text("repository", None if fetched else ""),
        file=table.text("file", None if fetched else ""),
        revision=table.optional_text("revision"),
        sha256=table.optional_text("sha256"),
        style=Style(table.choice("style", list(Style)) or Style.CHAT),
    )
    table.done()
    return part


def _folder() -> Path:
    return Path(str(resources.files("capt_local.hub"))) / "recipes"
