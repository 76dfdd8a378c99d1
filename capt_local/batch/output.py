"""A line of the output: the answer to one record, or why there is none, and where it comes from.

The shape is that of OpenAI's batch output, `{id, custom_id, response, error}`, so that existing
readers work; the body is a chat completion. What is ours stands beside: `capt`, `timings`,
`provenance`. What is the same for all lines of a run and long (build flags, parameters, platform)
stands once in the run's manifest beside the output; each line names it by `provenance.run`.

A line holds nothing random, so the same run gives the same bytes apart from the times: those are
`response.body.created`, `timings` and `provenance.time`.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from capt_local.batch.fingerprint import Fingerprint
from capt_local.batch.records import InputChanged, Record, TemplateFailed
from capt_local.errors import (
    CaptError,
    ContextOverflow,
    MemoryShortage,
    ModelError,
    NumericalError,
    UsageError,
)
from capt_local.report.json import JsonObject, dumps

OK = "ok"
AI_LABEL, HUMAN_REVIEW = "AIRPT", "none"
_LONGEST = 500  # characters of a message
_BODY = ("id", "object", "created", "model", "choices", "usage")


class ErrorCode(StrEnum):
    """Why a record has no answer, or not the one that was asked for."""

    CONTEXT_OVERFLOW = "context_overflow"
    NUMERICAL_ERROR = "numerical_error"
    WORKER_DIED = "worker_died"
    TIMED_OUT = "timed_out"
    TEMPLATE_ERROR = "template_error"
    INPUT_CHANGED = "input_changed"
    INVALID_STRUCTURE = "invalid_structure"
    INVALID_REQUEST = "invalid_request"
    MEMORY_SHORTAGE = "memory_shortage"
    MODEL_ERROR = "model_error"
    UNEXPECTED = "unexpected"


_CODES: tuple[tuple[type[CaptError], ErrorCode], ...] = (
    (ContextOverflow, ErrorCode.CONTEXT_OVERFLOW),
    (NumericalError, ErrorCode.NUMERICAL_ERROR),
    (MemoryShortage, ErrorCode.MEMORY_SHORTAGE),
    (ModelError, ErrorCode.MODEL_ERROR),
    (UsageError, ErrorCode.INVALID_REQUEST),
    (InputChanged, ErrorCode.INPUT_CHANGED),
    (TemplateFailed, ErrorCode.TEMPLATE_ERROR),
)


def code_of(error: CaptError) -> ErrorCode:
    """The code of an error that a record ended with."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ErrorCode.UNEXPECTED


@dataclass(frozen=True, slots=True)
class Asked:
    """The record that a line is about.

    Attributes:
        id: of the record.
        number: its line in the input, from 1.
        sha256: digest of its raw bytes; a changed record is found by it.
        custom_id: where the input had one.
        seed: of its random draws; None where it never came to that.
    """

    id: str
    number: int
    sha256: str
    custom_id: str | None = None
    seed: int | None = None

    @classmethod
    def about(cls, record: Record, seed: int | None = None) -> Asked:
        """What a line says of a record."""
        return cls(record.id, record.number, record.digest, record.custom_id, seed)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer, or not the one that was asked for.

    Attributes:
        code: for programs.
        message: for people; the caller sees to it that it holds no text of a patient.
    """

    code: ErrorCode
    message: str

    def as_object(self) -> JsonObject:
        """For JSON; one line of limited length."""
        return {"code": str(self.code), "message": " ".join(self.message.split())[:_LONGEST]}


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line.

    Attributes:
        asked: the record.
        response: `{status_code, request_id, body}`, or None.
        error: `{code, message}`, or None.
        capt: what the expert changed, or None.
        timings: seconds by name, and `speed`: how often each model ran.
        provenance: of this line; see `Origin`.
    """

    asked: Asked
    response: JsonObject | None
    error: JsonObject | None
    capt: JsonObject | None
    timings: JsonObject
    provenance: JsonObject

    @property
    def id(self) -> str:
        """Of the record."""
        return self.asked.id

    @property
    def code(self) -> str:
        """`ok`, or that of the error."""
        return str(self.error["code"]) if self.error else OK

    def encode(self) -> bytes:
        """The line without its end: ASCII, and no line feed in it."""
        line = {
            "id": self.asked.id,
            "custom_id": self.asked.custom_id,
            "response": self.response,
            "error": self.error,
            "capt": self.capt,
            "timings": self.timings,
            "provenance": self.provenance,
        }
        return dumps(line).encode("ascii")


class Origin:
    """Where all lines of a run come from; makes them.

    Args:
        fingerprint: of the run.
    """

    def __init__(self, fingerprint: Fingerprint) -> None:
        """Takes what every line repeats."""
        self.run = fingerprint.digest
        self._common: JsonObject = {
            "run": self.run,
            "versions": dict(fingerprint.versions),
            "bundle": dict(fingerprint.bundle),
            "models": {role: model["sha256"] for role, model in fingerprint.models.items()},
            "method": fingerprint.method,
        }

    def answered(
        self,
        asked: Asked,
        answer: Mapping[str, Any],
        now: float,
        *,
        logprobs: bool = False,
        invalid: str = "",
        warnings: Sequence[str] = (),
    ) -> OutputLine:
        """The line of an answer.

        Args:
            asked: the record.
            answer: as `report.json.answer_object` gives it.
            now: seconds since 1970.
            logprobs: whether the line holds the record of each token.
            invalid: why the answer is not of the form that was asked for; it is kept, with an
                error beside it.
            warnings: what there is to say besides the answer's own.
        """
        body = {name: answer[name] for name in _BODY if name in answer}
        body |= {"id": self._request(asked), "created": int(now)}
        choice = dict(answer["choices"][0])
        if not logprobs:
            choice["logprobs"] = None
        body["choices"] = [choice]
        capt, timings = dict(answer["capt"]), dict(answer["timings"])
        if "speed" in capt:  # how much work it was depends on what was in the caches before
            timings["speed"] = capt.pop("speed")
        failure = Failure(ErrorCode.INVALID_STRUCTURE, invalid) if invalid else None
        said = _said(choice)
        return OutputLine(
            asked=asked,
            response={"status_code": 200, "request_id": self._request(asked), "body": body},
            error=failure.as_object() if failure else None,
            capt=capt,
            timings=timings,
            provenance=self._provenance(asked, now, "failed" if failure else OK)
            | {
                "finish_reason": choice["finish_reason"],
                "output_sha256": hashlib.sha256(said.encode("utf-8", "replace")).hexdigest(),
                "warnings": [*answer.get("warnings", ()), *warnings],
            },
        )

    def failed(
        self, asked: Asked, failure: Failure, now: float, timings: Mapping[str, float] | None = None
    ) -> OutputLine:
        """The line of a record without an answer."""
        return OutputLine(
            asked=asked,
            response=None,
            error=failure.as_object(),
            capt=None,
            timings=dict(timings or {}),
            provenance=self._provenance(asked, now, "failed")
            | {"finish_reason": None, "output_sha256": None, "warnings": []},
        )

    def _request(self, asked: Asked) -> str:
        """An id of the answer that says nothing about the text, and is the same each time."""
        digest = hashlib.sha256(f"{self.run} {asked.id}".encode("utf-8", "replace"))
        return f"capt-{digest.hexdigest()[:32]}"

    def _provenance(self, asked: Asked, now: float, status: str) -> JsonObject:
        time = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "status": status,
            **self._common,
            "seed": asked.seed,
            "record": {"line": asked.number, "sha256": asked.sha256},
            "ai_label": AI_LABEL,
            "human_review": HUMAN_REVIEW,
        }


def answer_object_of(line: Mapping[str, Any]) -> JsonObject | None:
    """The answer of a line in the form that `report.readback.answer_from` reads.

    Args:
        line: as a JSON reader returns it; not trusted.

    Returns:
        None where the line holds no answer.
    """
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


def _said(choice: Mapping[str, Any]) -> str:
    """The text of the answer."""
    message = choice.get("message")
    return str(message["content"] if message is not None else choice["text"])
