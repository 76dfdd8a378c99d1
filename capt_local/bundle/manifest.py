"""What a bundle is: a target and pairs of expert and base, and how to ask them.

A bundle is a folder with a `bundle.toml`. The manifest names each file with its size and digest,
so that nothing but the models it was made with is ever loaded under its name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import cast

from capt_local.bundle.adapter import Adapted, AdapterFile, listed_adapters, read_adapter
from capt_local.bundle.fields import Table
from capt_local.bundle.roles import Role, adapted, count_pairs, paired, roles
from capt_local.errors import ModelError

MANIFEST = "bundle.toml"
SCHEMA = 1
ALPHA_LIMIT = 8.0  # that of `decode.options.CombineOptions`
_LARGEST_MANIFEST = 1 << 20

METHODS = ("capt", "target", "expert", "base")


class Style(StrEnum):
    """The form in which a model is asked."""

    CHAT = "chat"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model of a bundle.

    Attributes:
        role: what it does in the bundle; see `bundle.roles`.
        path: of the GGUF file; several models may share one.
        size: bytes.
        sha256: digest in hexadecimal; None for a file that was given by its path.
        licence: of the weights.
        source: where they come from.
        style: asked through a chat template, or with the text as it is.
        template: name of a built-in chat template instead of the file's own.
        template_file: a chat template beside the model instead of the file's own.
        template_sha256: digest of `template_file`, or else of the GGUF's own template.
        adapter: a LoRA adapter on it; a model of the same file without one is not changed by it.
    """

    role: Role
    path: Path
    size: int
    sha256: str | None = None
    licence: str = ""
    source: str = ""
    style: Style = Style.CHAT
    template: str | None = None
    template_file: Path | None = None
    template_sha256: str | None = None
    adapter: AdapterFile | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the bundle asks for where the user says nothing; None is the program's own default.

    Attributes:
        method: a name of `decode.options.Method`.
        alphas: fixed weights, one for all pairs or one for each; empty: from the evidence.
        plausibility: see `decode.options.CombineOptions`.
        temperature: 0 takes the likeliest token.
        max_tokens: the longest answer.
    """

    method: str | None = None
    alphas: tuple[float, ...] = ()
    plausibility: float | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """Models that belong together.

    Attributes:
        id: short name, which is also its folder's name in a store.
        title: one line for people.
        version: of the bundle.
        licence: of the bundle as a whole.
        description: for people; may have several lines.
        models: by role; the target always, of each pair both expert and base.
        context: tokens of context to use; None is the models' own.
        defaults: how to ask.
        folder: where it lies; None for files that were given by their paths.
        notices: what the user should be told.
    """

    id: str
    models: dict[Role, ModelFile]
    title: str = ""
    version: str = ""
    licence: str = ""
    description: str = ""
    context: int | None = None
    defaults: Defaults = field(default_factory=Defaults)
    folder: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def pairs(self) -> int:
        """How many pairs of expert and base it has."""
        return sum(role.startswith("expert") for role in self.models)

    @property
    def adapters(self) -> dict[Role, AdapterFile]:
        """The adapters by the role of their model."""
        return {role: model.adapter for role, model in self.models.items() if model.adapter}

    @property
    def digests(self) -> dict[str, str | None]:
        """SHA-256 of each model by its role, of its adapter by `<role>.adapter`; None if unknown.

        A scale other than 1 stands behind the adapter's name.
        """
        found = {str(role): model.sha256 for role, model in self.models.items()}
        for role, adapter in self.adapters.items():
            scale = "" if adapter.scale == 1 else f"*{adapter.scale:g}"
            found[f"{role}.adapter{scale}"] = adapter.sha256
        return found

    @classmethod
    def load(cls, place: Path) -> Bundle:
        """Reads a manifest.

        Args:
            place: the `bundle.toml`, or its folder.

        Raises:
            ModelError: it is missing, broken, or a file that it names is not there.
        """
        file = place / MANIFEST if place.is_dir() else place
        return _bundle(Table(_parsed(file), file), file.parent)

    @classmethod
    def from_paths(
        cls,
        target: str | Path,
        expert: str | Path | Sequence[str | Path] | None = None,
        base: str | Path | Sequence[str | Path] | None = None,
        expert_adapter: Adapted | Sequence[Adapted] | None = None,
    ) -> Bundle:
        """A bundle of files that were given one by one, without digests.

        Args:
            target: its file.
            expert: one file, or one for each pair.
            base: likewise, in the order of the experts; they may share one file.
            expert_adapter: a LoRA adapter of the expert, or one for each; without experts, each
                expert is the base with its adapter.

        Raises:
            UsageError: an expert without a base, or the other way round; an adapter without either.
            ModelError: a file is missing.
        """
        adapters, bases = listed_adapters(expert_adapter), _listed(base)
        proxies = paired(adapted(_listed(expert), bases, adapters), bases)
        files = zip(roles(len(proxies) // 2), (target, *proxies), strict=True)
        models = {role: _loose(role, Path(path)) for role, path in files}
        for role, adapter in zip(list(models)[1::2], adapters, strict=False):
            models[role] = replace(models[role], adapter=adapter)
        notice = "The models were given as files: no manifest says whether they are the right ones."
        return cls(id="files", title="Models given as files", models=models, notices=(notice,))


def _parsed(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_MANIFEST + 1)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{file}: the bundle's manifest cannot be read: {reason}.") from None
    if len(data) > _LARGEST_MANIFEST:
        raise ModelError(f"{file}: larger than 1 MiB; this is not a bundle's manifest.")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"{file}: not UTF-8; this is not a bundle's manifest.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise ModelError(f"{file}: not valid TOML{line}.") from None


def _bundle(top: Table, folder: Path) -> Bundle:
    if top.whole("schema", 1) != SCHEMA:
        top.fail("schema", f"must be {SCHEMA}, the version of the format that this program reads")
    models = _models(top.table("models"), folder)
    bundle = Bundle(
        id=top.name("id"),
        title=top.text("title", ""),
        version=top.text("version", ""),
        licence=top.text("licence", ""),
        description=top.text("description", ""),
        context=top.whole("context", 1),
        defaults=_defaults(top.table("defaults"), len(models) // 2),
        models=models,
        folder=folder,
    )
    top.done()
    return bundle


def _models(tables: Table, folder: Path) -> dict[Role, ModelFile]:
    given = tables.keys()
    if "target" not in given:
        tables.fail("target", "is missing; every bundle has a target")
    pairs = count_pairs(given, tables.fail)
    return {role: _model(tables.table(role), role, folder) for role in roles(pairs)}


def _model(table: Table, role: Role, folder: Path) -> ModelFile:
    path, size, digest = table.file("file", folder), table.whole("size", 1), table.digest("sha256")
    for key, value in (("file", path), ("size", size), ("sha256", digest)):
        if value is None:
            table.fail(key, "is missing")
    model = ModelFile(
        role=role,
        path=cast(Path, path),
        size=cast(int, size),
        sha256=digest,
        licence=table.text("licence", ""),
        source=table.text("source", ""),
        style=Style(table.choice("style", list(Style)) or Style.CHAT),
        template=table.name("template") if "template" in table else None,
        template_file=table.file("template_file", folder),
        template_sha256=table.digest("template_sha256"),
        adapter=read_adapter(table.table("adapter"), folder) if "adapter" in table else None,
    )
    if model.template and (model.template_file or model.template_sha256):
        table.fail("template", "names a built-in template; remove template_file and its digest")
    if model.template_file and not model.template_sha256:
        table.fail("template_sha256", "is missing; template_file needs its digest")
    table.done()
    return model


def _defaults(table: Table, pairs: int) -> Defaults:
    alphas: tuple[float, ...] = ()
    if table.is_text("alpha"):
        table.choice("alpha", ("evidence",))
    else:
        alphas = table.numbers("alpha", -ALPHA_LIMIT, ALPHA_LIMIT)
    if len(alphas) > 1 and len(alphas) != pairs:
        table.fail("alpha", f"must be one number, or one for each pair of the bundle ({pairs})")
    defaults = Defaults(
        method=table.choice("method", METHODS),
        alphas=alphas,
        plausibility=table.number("plausibility", 0, 1),
        temperature=table.number("temperature", 0, 100),
        max_tokens=table.whole("max_tokens", 1),
    )
    table.done()
    return defaults


def _listed(given: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if given is None:
        return []
    return [given] if isinstance(given, str | Path) else list(given)


def _loose(role: Role, path: Path) -> ModelFile:
    try:
        if not path.is_file():
            raise ModelError(f"The {role} model {path.name} is not there, or is not a file.")
        return ModelFile(role=role, path=path, size=path.stat().st_size)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"The {role} model {path.name} cannot be read: {reason}.") from None
