"""Output lines, their CSV table, and the run's manifest OUTPUT.run.json.

The shape is that of OpenAI's batch output, `{id, custom_id, response, error}`, so that existing
readers work; both ids are the record's, and the body is a chat completion. Our own fields are
`capt`, `timings`, `provenance`, and `sha256` of the line up to that field. A line holds nothing
random: the same run gives the same bytes apart from `response.body.created`, `timings`,
`provenance.time` and that digest.

The fingerprint of a run is everything that determines the answers besides the records; an output is
resumed only with the same fingerprint. Texts of the user are digests in it. The manifest holds it
with what all lines share: build flags, devices, loading, the input's digest. Readers of OpenAI's
format take every line of the output for a record, so none of this can be stored there.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from capt_local.batch.records import BatchRecord, record_seed
from capt_local.bundles.manifest import MANIFEST, Bundle, ModelFile
from capt_local.bundles.verify import file_digest
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import CaptError, UsageError
from capt_local.provenance import parameters_of
from capt_local.report.json import JsonObject, dumps
from capt_local.strict_json import ParseError, parse_json

OK = "ok"
ENDING = "run.json"
AI_LABEL, HUMAN_REVIEW = "AIRPT", "none"
Fingerprint = dict[str, Any]
_VERSION = 2
_SHOWN = 8  # fields that one error names
_LONGEST = 500  # characters of a message
_BODY = ("id", "object", "created", "model", "choices", "usage")
_SEAL, _SEAL_END = b', "sha256": "', b'"}'
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # prefixes that spreadsheets evaluate


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record has no answer, or an invalid one.

    Attributes:
        code: machine-readable: that of a class of `errors`, or one of batch (docs/batch.md).
        message: for the user; holds no patient text.
    """

    code: str
    message: str

    @classmethod
    def of(cls, error: CaptError) -> Failure:
        """The failure of a record that ended with an error."""
        return cls(error.code, str(error))

    def as_object(self) -> JsonObject:
        """For JSON; one line of limited length."""
        return {"code": self.code, "message": " ".join(self.message.split())[:_LONGEST]}


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line; see docs/batch.md for its parts."""

    record: BatchRecord
    response: JsonObject | None
    error: JsonObject | None
    capt: JsonObject | None
    timings: JsonObject
    provenance: JsonObject

    @property
    def code(self) -> str:
        """`ok`, or that of the error."""
        return str(self.error["code"]) if self.error else OK

    def encode(self) -> bytes:
        """The line in ASCII, without a line feed."""
        line = {
            "id": self.record.id,
            "custom_id": self.record.id,
            "response": self.response,
            "error": self.error,
            "capt": self.capt,
            "timings": self.timings,
            "provenance": self.provenance,
        }
        data = dumps(line).encode("ascii").removesuffix(b"}")
        return data + _SEAL + hashlib.sha256(data).hexdigest().encode() + _SEAL_END


def is_sealed(line: bytes) -> bool:
    """Whether an encoded line matches the digest at its end."""
    data, _, digest = line.rstrip(b"\r\n").removesuffix(_SEAL_END).rpartition(_SEAL)
    return hashlib.sha256(data).hexdigest().encode() == digest


class LineWriter:
    """Builds the output lines of a run."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.run = digest_of(fingerprint)
        self._seed: int = fingerprint["parameters"]["sample"]["seed"]
        self._common: JsonObject = {
            "run": self.run,
            "versions": fingerprint["versions"],
            "bundle": fingerprint["bundle"],
            "models": {role: model["sha256"] for role, model in fingerprint["models"].items()},
            "method": fingerprint["method"],
        }

    def answered(
        self,
        record: BatchRecord,
        answer: Mapping[str, Any],
        now: float,
        *,
        logprobs: bool = False,
        invalid: str = "",
    ) -> OutputLine:
        """The line of an answer (as `report.json.answer_object` gives it); `now` is Unix time.

        `invalid` is why the answer is no instance of its schema; it stays, with an error beside.
        """
        choice = dict(answer["choices"][0])
        if not logprobs:
            choice["logprobs"] = None
        # A deterministic id that reveals nothing about the text.
        digest = hashlib.sha256(f"{self.run} {record.id}".encode("utf-8", "replace"))
        id = f"capt-{digest.hexdigest()[:32]}"
        body = {name: answer[name] for name in _BODY if name in answer}
        body |= {"id": id, "created": int(now), "choices": [choice]}
        capt, timings = dict(answer["capt"]), dict(answer["timings"])
        if "speed" in capt:  # how much work it was depends on what was in the caches before
            timings["speed"] = capt.pop("speed")
        text = answer_text(choice)
        error = Failure("invalid_structure", invalid).as_object() if invalid else None
        provenance = self._provenance(
            record,
            now,
            "failed" if error else OK,
            finish_reason=choice["finish_reason"],
            output_sha256=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
            warnings=list(answer.get("warnings", ())),
        )
        response = {"status_code": 200, "request_id": id, "body": body}
        return OutputLine(record, response, error, capt, timings, provenance)

    def failed(self, record: BatchRecord, failure: Failure, now: float) -> OutputLine:
        """The line of a record without an answer."""
        provenance = self._provenance(
            record, now, "failed", finish_reason=None, output_sha256=None, warnings=[]
        )
        return OutputLine(record, None, failure.as_object(), None, {}, provenance)

    def _provenance(
        self, record: BatchRecord, now: float, status: str, **answer: object
    ) -> JsonObject:
        return {
            "time": time_text(now),
            "status": status,
            **self._common,
            "seed": record_seed(self._seed, record.id),
            "record": {"line": record.number, "sha256": record.digest},
            "ai_label": AI_LABEL,
            "human_review": HUMAN_REVIEW,
            **answer,
        }


def answer_text(choice: Mapping[str, Any]) -> str:
    """The text of an answer, of a chat or of a raw completion."""
    message = choice.get("message")
    return str(message["content"] if message is not None else choice["text"])


def answer_object_of(line: Mapping[str, Any]) -> JsonObject | None:
    """The answer of a line, which is not trusted, for `report.json.answer_from`; None without."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(body, dict):
        return None
    ours = {name: line[name] for name in ("capt", "timings", "provenance") if name in line}
    provenance = line.get("provenance")
    if isinstance(provenance, dict):
        labels = {"ai_label": AI_LABEL, "human_review": HUMAN_REVIEW}
        ours |= {"warnings": provenance.get("warnings", []), **labels}
    return {**body, **ours}


def answers_table(lines: Iterable[bytes]) -> str:
    """CSV of the answers of an output, one row a record, in its order.

    Columns: id, status (`ok` or the code of the error), and for each field of any answer its value
    and `FIELD source`: its place in the note in characters, with the page ("120-127 p. 2"), or
    "unsupported". Free text is the one field `answer`. A text that a spreadsheet would run as a
    formula has an apostrophe in front, ids and names of fields too.
    """
    rows = [_row(json.loads(line)) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(names) or ["id", "status"], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _row(line: Mapping[str, Any]) -> dict[str, str]:
    error = line.get("error")
    row = {"id": _cell(line["id"]), "status": error["code"] if error else OK}
    if line.get("response") is None:
        return row
    text = answer_text(line["response"]["body"]["choices"][0])
    try:
        fields = dict(_fields(json.loads(text), ""))
    except ValueError:
        fields = {}
    sources = (line.get("capt") or {}).get("sources") or {}
    places = {fact["path"]: fact for fact in sources.get("facts", ()) if fact["path"]}
    for path, value in fields.items():
        row[_cell(path)] = _cell(value)
        place = ""
        if fact := places.get(path):
            page = f" p. {fact['page']}" if fact["page"] else ""
            place = "{}-{}{}".format(*fact["source"], page) if fact["source"] else "unsupported"
        row[f"{_cell(path)} source"] = place
    return row if fields else {**row, "answer": _cell(text)}


def _fields(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Each value of a JSON object by its path, as `medications[0].dose`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _fields(inner, f"{path}[{place}]")
    elif path:
        yield path, value


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text


# --- of which run they are ------------------------------------------------------------------------


def fingerprint_of(
    bundle: Bundle, options: GenerateOptions, **others: Mapping[str, Any]
) -> Fingerprint:
    """Everything that determines an answer besides its record.

    The others are versions, build, prompt (digests of template and system text, the date),
    computing (what changes the last digit of a number) and output (what a line holds). Models
    without a known digest are read. Raises ModelError if one cannot be.
    """
    parameters = parameters_of(options, [digest_of(text) for text in options.stop])
    del parameters["method"]
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
    """The fields in which two fingerprints differ: dotted names; numbers with both values."""
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


def time_text(now: float) -> str:
    """A Unix time in UTC, to the second."""
    moment = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


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
        """The manifest of a new run."""
        return cls(
            run=f"run-{uuid.uuid4().hex}",
            created=time_text(time.time()),
            fingerprint_sha256=digest_of(fingerprint),
            fingerprint=fingerprint,
        )

    def encode(self) -> bytes:
        """The content of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def decode(cls, data: bytes, what: str) -> RunManifest:
        """Reads the content of the file; UsageError if it is broken, or of another version."""
        try:
            value = parse_json(data)
            if not isinstance(value, dict) or "capt_run" not in value:
                raise ParseError("no manifest")
            if value["capt_run"] != _VERSION:
                raise UsageError(
                    f"{what} was written by another version of capt-local. Name a new file."
                )
            found = msgspec.convert(value, cls)
            if found.fingerprint_sha256 != digest_of(found.fingerprint):
                raise ParseError("not its digest")
        except (ParseError, msgspec.ValidationError):
            raise UsageError(
                f"{what}: its manifest (.{ENDING}) is broken, so it is not known which run it is "
                "of. Name a new file, or move this one aside with --force-new."
            ) from None
        return found


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output is."""
    return output.with_name(f"{output.name}.{ENDING}")
