"""Which run an output belongs to: the fingerprint of its settings, and OUTPUT.run.json.

The fingerprint is everything that decides the answers besides the records; only the same run goes
on with an output. Texts that a user wrote are digests in it. The manifest beside the output holds
it with what is the same for all lines: build flags, devices, loading, the input's digest. Readers
of OpenAI's format take every line of the output for a record, so none of this can stand there.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from capt_local.bundles.manifest import MANIFEST, Bundle, ModelFile
from capt_local.bundles.verify import file_digest
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.strict_json import NotReadable, parse_json

ENDING = "run.json"
AI_LABEL, HUMAN_REVIEW = "AIRPT", "none"
_VERSION = 2
_SHOWN = 8  # fields that one error names
Fingerprint = dict[str, Any]


def fingerprint_of(
    bundle: Bundle, options: GenerateOptions, **others: Mapping[str, Any]
) -> Fingerprint:
    """Everything that decides an answer besides its record.

    Args:
        bundle: that answers; models without a known digest are read.
        options: of the whole run.
        **others: versions, build, prompt (digests of template and system text, the date), computing
            (what changes the last digit of a number) and output (what a line holds).

    Raises:
        ModelError: a model cannot be read.
    """
    parameters = dataclasses.asdict(options)
    del parameters["method"]
    # Stop strings and the form of an answer may hold words of a note.
    parameters["stop"] = [digest_of(text) for text in options.stop]
    if options.structure is not None:
        form = {"kind": options.structure.kind, "sha256": options.structure.digest}
        parameters["structure"] = form
    manifest = bundle.folder / MANIFEST if bundle.folder else None
    known = manifest is not None and manifest.is_file()
    digest = file_digest(manifest) if known and manifest else None
    return plain(
        {
            "bundle": {"id": bundle.id, "manifest_sha256": digest},
            "models": {str(role): model_identity(file) for role, file in bundle.models.items()},
            "method": str(options.method),
            "parameters": parameters,
            **others,
        }
    )


def model_identity(file: ModelFile) -> dict[str, str | None]:
    """Digests of a model's file, template and adapters. Raises ModelError."""
    found = {
        "sha256": file.sha256 or file_digest(file.path),
        "style": str(file.style),
        "template": file.template,
        "template_sha256": file.template_sha256,
    }
    for number, adapter in enumerate(file.adapters, 1):
        end = f"_{number}" if number > 1 else ""
        found[f"adapter{end}_sha256"] = adapter.sha256 or file_digest(adapter.path)
        found[f"adapter{end}_scale"] = repr(adapter.scale)
    return found


def digest_of(value: str | Mapping[str, Any]) -> str:
    """SHA-256 of a text, or of an object as JSON, in hexadecimal."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object as it will be read back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where two fingerprints differ, for a sentence: dotted names, with both values of numbers."""
    missing = object()

    def walk(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name in dict.fromkeys([*before, *now]):
            old, new = before.get(name, missing), now.get(name, missing)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                yield from walk(old, new, f"{prefix}{name}.")
            elif old != new or isinstance(old, bool) != isinstance(new, bool):
                numbers = all(isinstance(value, bool | int | float) for value in (old, new))
                yield f"{prefix}{name}" + (f" ({old}, now {new})" if numbers else "")

    names = list(walk(before, now, ""))
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more


def now_text() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RunManifest(msgspec.Struct, kw_only=True):
    """What OUTPUT.run.json holds.

    Attributes:
        run: a random id of the run; it stays when the run is resumed.
        created: when the run began, in UTC.
        fingerprint: see `fingerprint_of`.
        input: form, digest and number of records, as of the last start.
        starts: each start of the run, with its `time`: versions, devices, loading, bundle;
            `loaded` once models are loaded; `summary` when it ended in good order.
    """

    capt_run: int = _VERSION
    run: str
    created: str
    fingerprint_sha256: str
    fingerprint: Fingerprint
    input: dict[str, Any] = {}
    starts: list[dict[str, Any]] = []
    ai_label: str = AI_LABEL
    human_review: str = HUMAN_REVIEW

    @classmethod
    def new(cls, fingerprint: Fingerprint) -> RunManifest:
        """That of a run that begins."""
        return cls(
            run=f"run-{uuid.uuid4().hex}",
            created=now_text(),
            fingerprint_sha256=digest_of(fingerprint),
            fingerprint=fingerprint,
        )

    @property
    def computes_elsewhere(self) -> bool:
        """Whether the starts that loaded models used different devices, or layers on them."""
        used = [(each.get("devices"), each["loaded"]) for each in self.starts if "loaded" in each]
        return any(each != used[0] for each in used)

    def encode(self) -> bytes:
        """The content of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def decode(cls, data: bytes, what: str) -> RunManifest:
        """Reads the content of the file of an output that errors call `what`.

        Raises:
            UsageError: it is broken, or of another version.
        """
        try:
            value = parse_json(data)
            if not isinstance(value, dict) or "capt_run" not in value:
                raise NotReadable("no manifest")
            if value["capt_run"] != _VERSION:
                raise UsageError(
                    f"{what} was written by another version of capt-local. Name a new file."
                )
            found = msgspec.convert(value, cls)
            if found.fingerprint_sha256 != digest_of(found.fingerprint):
                raise NotReadable("not its digest")
        except (NotReadable, msgspec.ValidationError):
            raise UsageError(
                f"{what}: its manifest (.{ENDING}) is broken, so it is not known which run it is "
                "of. Name a new file, or move this one aside with --force-new."
            ) from None
        return found


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output is."""
    return output.with_name(f"{output.name}.{ENDING}")
