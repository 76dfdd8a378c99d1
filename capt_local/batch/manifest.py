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
from dataclasses import dataclass, field, replace
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
_VERSION = 1
_SHOWN = 8  # fields that one error names


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What decides the answers of a run besides the records.

    Attributes:
        versions: of the tool, the binding and llama.cpp, by name.
        build: llama.cpp's build flags and instruction sets, and the platform.
        bundle: its id and the digest of its manifest.
        models: of each role the digests of its file and template.
        method: its name.
        parameters: all of `GenerateOptions` but the method, the run's seed among them.
        prompt: digests of the template and the system text, the date for chat templates, ...
        computing: what changes the last digit of a number: threads, context, batch, layers on
            the GPU, records at once.
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
        cls, bundle: Bundle, options: GenerateOptions, **others: Mapping[str, Any]
    ) -> Fingerprint:
        """The fingerprint of a run; reads models whose digest no manifest names.

        Args:
            bundle: that answers.
            options: of the whole run.
            **others: versions, build, prompt, computing and output; texts as `digest_of(text)`.

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
        manifest = bundle.folder / MANIFEST if bundle.folder else None
        known = manifest is not None and manifest.is_file()
        return cls(
            bundle={
                "id": bundle.id,
                "manifest_sha256": file_digest(manifest) if known and manifest else None,
            },
            models={str(role): _model(file) for role, file in bundle.models.items()},
            method=str(options.method),
            parameters=parameters,
            **others,
        )

    def as_object(self) -> dict[str, Any]:
        """As JSON."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return _plain(values)

    @property
    def digest(self) -> str:
        """SHA-256 of it as JSON; `provenance.run` of each line."""
        return _digest_of_object(self.as_object())


def digest_of(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digest_of_object(value: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(value, sort_keys=True, ensure_ascii=True))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two fingerprints differ: dotted names, with both values where these are numbers."""

    def walk(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[str]:
        missing = object()
        for name in dict.fromkeys([*before, *now]):
            old, new = before.get(name, missing), now.get(name, missing)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                yield from walk(old, new, f"{prefix}{name}.")
            elif old != new or isinstance(old, bool) != isinstance(new, bool):
                numbers = all(isinstance(value, bool | int | float) for value in (old, new))
                yield f"{prefix}{name}" + (f" ({old}, now {new})" if numbers else "")

    return list(walk(before, now, ""))


def listed(names: list[str]) -> str:
    """Names for a sentence; of many only the first."""
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more


def now_text() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What OUTPUT.run.json holds.

    Attributes:
        run: a random id of the run; it stays when the run is resumed.
        created: when the run began, in UTC.
        fingerprint: as `Fingerprint.as_object` gives it.
        input: form, digest and number of records, as of the last start.
        provenance: of the first start, and of each later one that differs from the one before,
            with its `time`: versions, devices, loading, bundle; `loaded` once models are loaded.
        last: the summary of the last run; empty while one goes on or after a kill.
    """

    run: str
    created: str
    fingerprint: dict[str, Any]
    input: dict[str, Any]
    provenance: tuple[dict[str, Any], ...] = ()
    last: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(
        cls, fingerprint: Fingerprint, input: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> RunManifest:
        """That of a run that begins."""
        begun = cls(f"run-{uuid.uuid4().hex}", now_text(), fingerprint.as_object(), _plain(input))
        return begun.restarted(input, provenance)

    def restarted(self, input: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunManifest:
        """That of the same run, started again."""
        start, latest = _plain(provenance), self._latest
        same = all(name in latest and latest[name] == value for name, value in start.items())
        entries = self.provenance if same else (*self.provenance, {"time": now_text(), **start})
        return replace(self, input=_plain(input), last={}, provenance=entries)

    def loaded(self, models: Mapping[str, Any]) -> RunManifest:
        """With what is known once the models are loaded; a new entry if it was otherwise before."""
        latest, now = self._latest, _plain(models)
        if latest.get("loaded", now) != now:
            entry = {**latest, "time": now_text(), "loaded": now}
            return replace(self, provenance=(*self.provenance, entry))
        return replace(self, provenance=(*self.provenance[:-1], {**latest, "loaded": now}))

    @property
    def devices_used(self) -> list[tuple[object, object]]:
        """Devices and loaded models of all starts that loaded models; no two alike."""
        found: list[tuple[object, object]] = []
        for entry in self.provenance:
            used = entry.get("devices"), entry.get("loaded")
            if "loaded" in entry and used not in found:
                found.append(used)
        return found

    @property
    def _latest(self) -> dict[str, Any]:
        return self.provenance[-1] if self.provenance else {}

    @property
    def digest(self) -> str:
        """What `provenance.run` of each line is."""
        return _digest_of_object(self.fingerprint)

    def encode(self) -> bytes:
        """The content of the file."""
        value = {
            "capt_run": _VERSION,
            "run": self.run,
            "created": self.created,
            "fingerprint_sha256": self.digest,
            "fingerprint": self.fingerprint,
            "input": self.input,
            "provenance": list(self.provenance),
            "last": self.last,
            "ai_label": AI_LABEL,
            "human_review": HUMAN_REVIEW,
        }
        return json.dumps(value, ensure_ascii=True, allow_nan=False, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, what: str) -> RunManifest:
        """Reads the content of the file.

        Args:
            data: all of it.
            what: what errors call the output.

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
            if value.get("fingerprint_sha256") != found.digest:
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


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back."""
    found: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return found


def _model(file: ModelFile) -> dict[str, str | None]:
    found = {
        "sha256": file.sha256 or file_digest(file.path),
        "style": str(file.style),
        "template": file.template,
        "template_sha256": file.template_sha256,
    }
    if adapter := file.adapter:
        found["adapter_sha256"] = adapter.sha256 or file_digest(adapter.path)
        found["adapter_scale"] = repr(adapter.scale)
    return found
