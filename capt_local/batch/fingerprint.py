"""What decides the answers of a run, so that only the same run goes on with an output.

Texts that a user wrote stand in it as digests. Where two fingerprints differ, the names of the
fields are told, and values that are numbers; never a text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from capt_local.bundle.manifest import MANIFEST, Bundle, ModelFile
from capt_local.bundle.verify import file_digest
from capt_local.decoding.options import GenerateOptions

_SHOWN = 8  # fields that one error names
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What decides the answers of a run besides the records.

    Attributes:
        versions: of the tool, the binding and llama.cpp, by name.
        build: llama.cpp's build flags and instruction sets, and the platform.
        bundle: its id and the digest of its manifest.
        models: of each role the digest of the file and of how it is asked.
        method: its name.
        parameters: all of `GenerateOptions` but the method, the run's seed among them.
        prompt: digests of the template and the system text, the date that templates tell, ...
        computing: what changes the last digit of a number: threads, context, batch, layers on
            the GPU, how many records go at once.
        output: what a line holds besides the answer: whether log-probabilities.
    """

    versions: Mapping[str, str]
    build: Mapping[str, str]
    bundle: Mapping[str, str | None]
    models: Mapping[str, Mapping[str, str | None]]
    method: str
    parameters: Mapping[str, Any]
    prompt: Mapping[str, Any] = field(default_factory=dict)
    computing: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        options: GenerateOptions,
        *,
        versions: Mapping[str, str],
        build: Mapping[str, str],
        prompt: Mapping[str, Any],
        computing: Mapping[str, Any],
        output: Mapping[str, Any] | None = None,
    ) -> Fingerprint:
        """The fingerprint of a run; reads models whose digest no manifest names.

        Args:
            bundle: that answers.
            options: of the whole run.
            versions: see the class, as the others.
            build: likewise.
            prompt: likewise; texts as `digest_of(text)`.
            computing: likewise.
            output: likewise.

        Raises:
            ModelError: a model without a digest cannot be read.
        """
        parameters = dataclasses.asdict(options)
        del parameters["method"]
        # Stop strings and the form of an answer may hold words of a note.
        parameters["stop"] = [digest_of(text) for text in options.stop]
        if options.structure is not None:
            form = {"kind": options.structure.kind, "sha256": options.structure.digest}
            parameters["structure"] = form
        return cls(
            versions=dict(versions),
            build=dict(build),
            bundle={"id": bundle.id, "manifest_sha256": _manifest_digest(bundle)},
            models={str(role): _model(file) for role, file in bundle.models.items()},
            method=str(options.method),
            parameters=parameters,
            prompt=dict(prompt),
            computing=dict(computing),
            output=dict(output or {}),
        )

    def as_object(self) -> dict[str, Any]:
        """As JSON."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def digest(self) -> str:
        """SHA-256 of it as JSON."""
        return digest_of_object(self.as_object())


def digest_of(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_object(fingerprint: Mapping[str, Any]) -> str:
    """`Fingerprint.digest` of one that was read back."""
    return digest_of(json.dumps(fingerprint, sort_keys=True, ensure_ascii=True))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two fingerprints differ: dotted names, with both values where these are numbers.

    Args:
        before: as `Fingerprint.as_object` gives it.
        now: likewise.
    """
    return list(_differing(before, now, ""))


def told(names: list[str]) -> str:
    """Names for a sentence; of many only the first."""
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more


def _change(before: object, now: object) -> str:
    if all(isinstance(value, bool | int | float) for value in (before, now)):
        return f" ({before}, now {now})"
    return ""


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], front: str) -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        left, right = before.get(name, _MISSING), now.get(name, _MISSING)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differing(left, right, f"{front}{name}.")
        elif left != right or isinstance(left, bool) != isinstance(right, bool):
            yield f"{front}{name}{_change(left, right)}"


def _manifest_digest(bundle: Bundle) -> str | None:
    """None for files that were given by their paths, or a manifest of another name."""
    if bundle.folder is None or not (bundle.folder / MANIFEST).is_file():
        return None
    return file_digest(bundle.folder / MANIFEST, 0)


def _model(file: ModelFile) -> dict[str, str | None]:
    found = {
        "sha256": file.sha256 or file_digest(file.path, file.size),
        "style": str(file.style),
        "template": file.template,
        "template_sha256": file.template_sha256,
    }
    if adapter := file.adapter:
        found["adapter_sha256"] = adapter.sha256 or file_digest(adapter.path, adapter.size)
        found["adapter_scale"] = repr(adapter.scale)
    return found
