"""Recipes: which models make a bundle, where their files lie at a hub, and under which licences.

A recipe is a TOML file like a manifest without the files. Those that travel with the package say
nothing that nobody has looked up: a revision or digest that is missing is read from the hub at
the first use and pinned in the bundle.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from capt_local.bundles.manifest import NAME, Bundle, ModelFile, Role, Style, count_pairs, roles
from capt_local.bundles.manifest_file import ShortName, version_numbers
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import NotReadable, convert, form, read_regular

UNSTATED = "not-stated"
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
SOURCE = re.compile(r"hub:([^@\s]+)@([0-9a-f]{40})/(\S+)")  # of a model, in the manifest
_ENDING = ".toml"
_LARGEST_RECIPE = 1 << 16
_FILE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*/)*[A-Za-z0-9_][A-Za-z0-9._+-]*\.gguf")
_COMMIT = form("[0-9a-f]{40}", "must be a commit of 40 digits; names of branches move")
_DIGEST = form("[0-9a-f]{64}", "must be a SHA-256 of 64 hexadecimal digits")


class RecipePart(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a recipe says of one model.

    Attributes:
        weights: the model, as its makers call it.
        licence: of the weights, as one word; `UNSTATED` where nobody says.
        repository: that has the file, as OWNER/NAME; empty where it cannot be fetched.
        file: its path there; one `*` stands for any part of a name.
        revision: the commit, 40 digits; None: not known yet.
        sha256: digest in hexadecimal; None: likewise.
        style: chat or raw.
    """

    weights: str
    licence: Annotated[
        str, form(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}", "must be one word of letters and digits")
    ]
    repository: Annotated[str, form(rf"(?:(?!.*\.\.){WORD}/{WORD})?", "must be OWNER/NAME")] = ""
    file: str = ""
    revision: Annotated[str, _COMMIT] | None = None
    sha256: Annotated[str, _DIGEST] | None = None
    style: Style = Style.CHAT

    def names(self, file: str) -> bool:
        """Whether a path in the repository is the one that is meant."""
        front, star, back = self.file.partition("*")
        if not star:
            return file == self.file
        return re.fullmatch(f"{re.escape(front)}[^/]*{re.escape(back)}", file) is not None

    def made(self, model: ModelFile) -> bool:
        """Whether a model of an installed bundle was fetched as this says, as far as it says it."""
        found = SOURCE.fullmatch(model.source)
        return (
            found is not None
            and found[1] == self.repository
            and self.names(found[3])
            and self.revision in (None, found[2])
            and self.sha256 in (None, model.sha256)
            and self.style is model.style
        )


class _RecipeFile(msgspec.Struct, forbid_unknown_fields=True):
    schema: Literal[1]
    id: ShortName
    title: str
    version: str
    models: dict[str, dict[str, Any]]
    description: str = ""
    by_hand: str = ""
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    card: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a bundle is made of files of a hub.

    Attributes:
        id: of the recipe and the bundle.
        title: one line for people.
        version: of the bundle.
        parts: the models by role.
        description: for people.
        by_hand: what to do where a part may not be fetched; empty where all may.
        context: tokens of context to use; None is the models' own.
        card: texts for the card of the bundle.
    """

    id: str
    title: str
    version: str
    parts: Mapping[Role, RecipePart]
    description: str = ""
    by_hand: str = ""
    context: int | None = None
    card: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pinned(self) -> bool:
        """Whether the digest of every file is known without asking a hub."""
        return all(part.sha256 is not None for part in self.parts.values())

    def pinned(self, revisions: Mapping[str, str], digests: Mapping[str, str]) -> Recipe:
        """The same with commits and digests that the user pins, by role.

        Raises:
            UsageError: there is no such role, or a value is none that it may be.
            ModelError: the recipe pins another one.
        """
        parts = dict(self.parts)
        for flag, key, values in (
            ("--revision", "revision", revisions),
            ("--sha256", "sha256", digests),
        ):
            for role, value in values.items():
                if role not in parts:
                    known = ", ".join(parts)
                    raise UsageError(f"{flag}: the recipe {self.id} has no such role; {known}.")
                if getattr(parts[role], key) not in (None, value):
                    raise ModelError(
                        f"The recipe {self.id} pins another {key} of the {role} than {flag} gives. "
                        "Write a recipe of your own to use that one."
                    )
                known_part = msgspec.structs.asdict(parts[role]) | {key: value}
                try:
                    parts[role] = convert(known_part, RecipePart, flag)
                except NotReadable as error:
                    raise UsageError(f"{error}.") from None
        return replace(self, parts=parts)

    def fulfilled_by(self, bundle: Bundle) -> bool:
        """Whether an installed bundle is what this recipe with its pins would make."""
        same = bundle.version == self.version and bundle.models.keys() == self.parts.keys()
        return same and all(part.made(bundle.models[role]) for role, part in self.parts.items())


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
        data = read_regular(file, _LARGEST_RECIPE + 1)
        if len(data) > _LARGEST_RECIPE:
            raise NotReadable(f"larger than {_LARGEST_RECIPE >> 10} KiB; this is not a recipe")
        read = convert(tomllib.loads(data.decode("utf-8")), _RecipeFile)
        if version_numbers(read.version) is None:
            raise NotReadable("version must be numbers with dots, such as 1.2")
        if "target" not in read.models:
            raise NotReadable("models.target is missing; every bundle has a target")
        wanted = roles(count_pairs(list(read.models)))
        parts = {role: convert(read.models[role], RecipePart, f"models.{role}") for role in wanted}
        for role, part in parts.items():
            plain = part.file.replace("*", "x", 1)
            if not read.by_hand and not (part.repository and is_model(plain)):
                raise NotReadable(
                    f"models.{role} needs a repository, and the path of a .gguf file in it with "
                    "at most one *"
                )
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or 'unreadable'}.") from None
    except NotReadable as error:
        raise ModelError(f"{file}: {error}.") from None
    except (ValueError, RecursionError):  # also of a number that has too many digits
        raise ModelError(f"{file}: not TOML; this is not a recipe.") from None
    return Recipe(
        read.id,
        read.title,
        read.version,
        parts,
        read.description,
        read.by_hand,
        read.context,
        read.card,
    )


def is_model(path: str) -> bool:
    """Whether a path in a repository is one of those that are fetched."""
    return _FILE.fullmatch(path) is not None and ".." not in path and len(path) <= 200


def _folder() -> Path:
    return Path(str(resources.files("capt_local.bundles"))) / "recipes"
