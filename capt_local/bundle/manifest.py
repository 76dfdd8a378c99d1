"""What a bundle is: a target and pairs of expert and base, and how to ask them.

A bundle is a folder with a `bundle.toml`. The manifest names each file with its size and digest,
so that nothing but the models it was made with is ever loaded under its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from capt_local.bundle.adapter import Adapted, AdapterFile, listed_adapters
from capt_local.bundle.packaged import PackageFile
from capt_local.bundle.roles import Role, adapted, paired, roles
from capt_local.errors import ModelError

MANIFEST, SIGNATURE = "bundle.toml", "bundle.sig"
RECEIPT = "bundle.signer"  # which key vouched at import; see `bundle.signer`
SCHEMA = 1
ALPHA_LIMIT = 8.0  # that of `decode.options.CombineOptions`

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
        tokenizer_sha256: digest of the tokenizer in the file; see `engine.gguf_header`.
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
        card: what it says of itself, by the keys of `bundle.card`.
        folder: where it lies; None for files that were given by their paths.
        notices: what the user should be told.
        manifest_sha256: digest of the manifest as it was read; None without one.
        signer: whose trusted key has signed it; None where nobody asked, or nobody has.
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
