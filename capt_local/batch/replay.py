"""Running one record of an output again: what its run was, and whether the answer is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capt_local.batch.fingerprint import differing, digest_of
from capt_local.batch.journal_lines import raw_lines
from capt_local.batch.manifest import RunManifest, read_manifest
from capt_local.batch.output import OK
from capt_local.batch.packing import unpacked
from capt_local.decode.options import GenerateOptions, Structure
from capt_local.engine.options import LoadOptions
from capt_local.errors import UsageError
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

_WHAT = "The output (OUTPUT)"
_LOADING = ("threads", "context", "batch", "gpu_layers", "flash_attention", "kv_type")


@dataclass(frozen=True, slots=True)
class Said:
    """What a line of an output says.

    Attributes:
        code: `ok`, or that of the error.
        text: the answer; None where there is none.
        finish: why it ended.
        tokens: of the answer.
        sha256: of the text, as the line has it.
        logprobs: digest of the log-probabilities; None where the line holds none.
    """

    code: str
    text: str | None
    finish: str | None
    tokens: int
    sha256: str | None
    logprobs: str | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Said:
        """Reads a line.

        Raises:
            UsageError: it is not one.
        """
        try:
            error, provenance = line["error"], line["provenance"]
            code = OK if error is None else str(error["code"])
            digest = provenance["output_sha256"]
            if line["response"] is None:
                return cls(code, None, None, 0, digest)
            body = line["response"]["body"]
            choice = body["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            tokens = int(body["usage"]["completion_tokens"])
            inner = choice.get("logprobs")
            each = None if inner is None else digest_of(json.dumps(inner, sort_keys=True))
            return cls(code, str(text), choice["finish_reason"], tokens, digest, each)
        except (KeyError, TypeError, IndexError, ValueError):
            raise _no_result() from None

    @property
    def untouched(self) -> bool:
        """Whether the text is the one whose digest the line has."""
        if self.text is None:
            return True
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one record.

    Attributes:
        then: what the output says.
        now: what came out now.
    """

    then: Said
    now: Said

    @property
    def identical(self) -> bool:
        """Whether they are the same: text, end, tokens, log-probabilities, or the same error."""
        return self.then == self.now

    @property
    def same_text(self) -> bool:
        """Whether they are, apart from the log-probabilities."""
        return dataclasses.replace(self.then, logprobs=None) == dataclasses.replace(
            self.now, logprobs=None
        )

    @property
    def common(self) -> int:
        """Characters until they part."""
        one, other = self.then.text or "", self.now.text or ""
        pairs = enumerate(zip(one, other, strict=False))
        return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))

    def as_object(self) -> dict[str, Any]:
        """For JSON; no text."""
        return {
            "identical": self.identical,
            "same_text": self.same_text,
            "characters_in_common": self.common,
            "then": _figures(self.then),
            "now": _figures(self.now),
            "output_untouched": self.then.untouched,
        }


def find_line(output: Path, id: str) -> tuple[RunManifest, dict[str, Any]]:
    """The run of an output, and the line of a record.

    Raises:
        UsageError: it cannot be read, is no output of a run, or has no such record.
    """
    manifest = read_manifest(output, _WHAT)
    try:
        if not output.is_file():
            reason = "it is not a file" if output.exists() else "there is no such file"
            raise UsageError(f"{_WHAT} cannot be read: {reason}.")
        if manifest is None:
            raise UsageError(f"{_WHAT} is not of capt-local batch, or has lost its manifest.")
        with output.open("rb", buffering=0) as stream:
            for line in raw_lines(stream):
                found = _object(line)
                if found is not None and found.get("id") == id:
                    return manifest, found
    except OSError as error:
        raise UsageError(f"{_WHAT} cannot be read: {error.strerror or 'no access'}.") from None
    raise UsageError(f"{_WHAT} has no record of that id.")


def record_then(line: Mapping[str, Any]) -> str:
    """Digest of the record that a line is of.

    Raises:
        UsageError: the line is not one.
    """
    try:
        return str(line["provenance"]["record"]["sha256"])
    except (KeyError, TypeError):
        raise _no_result() from None


def options_then(
    manifest: RunManifest, stop: tuple[str, ...], structure: Structure | None
) -> GenerateOptions:
    """The options of a run. Of texts its manifest has digests alone, so they are given again.

    Raises:
        UsageError: the manifest is of another version.
    """
    kept = dict(_group(manifest, "parameters"))
    kept |= {"method": manifest.fingerprint.get("method"), "stop": list(stop), "structure": None}
    try:
        made = unpacked(GenerateOptions, kept)
        return dataclasses.replace(made, structure=structure)
    except ValueError:
        raise _other_version() from None


def load_then(manifest: RunManifest) -> LoadOptions:
    """How its models were loaded.

    Raises:
        UsageError: the manifest is of another version.
    """
    computing = _group(manifest, "computing")
    try:
        return unpacked(LoadOptions, {name: computing[name] for name in _LOADING})
    except (KeyError, ValueError):
        raise _other_version() from None


def parallel_then(manifest: RunManifest) -> int:
    """How many records it answered at once.

    Raises:
        UsageError: the manifest is of another version.
    """
    value = _group(manifest, "computing").get("parallel")
    if not isinstance(value, int) or value < 1:
        raise _other_version()
    return value


def date_then(manifest: RunManifest) -> str:
    """What its templates took for today.

    Raises:
        UsageError: the manifest is of another version.
    """
    value = _group(manifest, "prompt").get("date")
    if not isinstance(value, str):
        raise _other_version()
    return value


def logprobs_then(manifest: RunManifest) -> bool:
    """Whether its lines held log-probabilities where a record did not say.

    Raises:
        UsageError: the manifest is of another version.
    """
    value = _group(manifest, "output").get("logprobs")
    if not isinstance(value, bool):
        raise _other_version()
    return value


def computed_otherwise(manifest: RunManifest, now: Mapping[str, Any]) -> list[str]:
    """Names of what differs in devices and loading from every start of the run.

    Args:
        manifest: of the run.
        now: `devices` and `loaded`, as an entry of its provenance has them.
    """
    then = [{"devices": devices, "loaded": loaded} for devices, loaded in manifest.computed]
    if not then or dict(now) in then:
        return []
    return [f"computed.{name}" for name in differing(then[-1], now)]


def _group(manifest: RunManifest, name: str) -> Mapping[str, Any]:
    value = manifest.fingerprint.get(name)
    if not isinstance(value, Mapping):
        raise _other_version()
    return value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except NotReadable:
        return None


def _figures(said: Said) -> dict[str, Any]:
    return {
        "code": said.code,
        "finish_reason": said.finish,
        "completion_tokens": said.tokens,
        "logprobs": said.logprobs is not None,
    }


def _no_result() -> UsageError:
    return UsageError(f"{_WHAT}: the line of this record is not a result of capt-local batch.")


def _other_version() -> UsageError:
    return UsageError(
        f"{_WHAT}: its manifest is not one that this version can run again. Use the version of "
        "capt-local that wrote it."
    )
