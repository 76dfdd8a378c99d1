"""A run without models: records, made-up answers, and the loop that a run is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from capt_local.batch.journal import OutputJournal
from capt_local.batch.output import Failure, LineWriter, OutputLine
from capt_local.batch.records import BatchRecord
from capt_local.decoding.options import FinishReason
from capt_local.report.json import Answer, answer_object
from tests.batch.faults import Quick

NOTE = "canary-7f3a"  # stands for patient text: in answers alone, in no message


def fingerprint(**changed: Any) -> dict[str, Any]:
    return {
        "versions": {"capt_local": "1", "llama_cpp": "b1"},
        "build": {"platform": "test"},
        "bundle": {"id": "demo", "manifest_sha256": "ab" * 32},
        "models": {role: {"sha256": role.encode().hex()} for role in ("target", "expert", "base")},
        "method": "capt",
        "parameters": {"max_tokens": 16, "sample": {"seed": 0, "temperature": 0.0}},
        "prompt": {"template": None, "system": "cd" * 32},
        "computing": {"threads": 1, "parallel": 1},
    } | changed


def ids(count: int) -> list[str]:
    return [f"note-{number}" for number in range(1, count + 1)]


def ref(id: str) -> BatchRecord:
    number = int(id.rpartition("-")[2])
    sha256 = hashlib.sha256(f"record {id}".encode()).hexdigest()
    return BatchRecord(number, id, NOTE, sha256)


def line(id: str, of: dict[str, Any], now: float = 1.5e9) -> OutputLine:
    """The answer of a record: its length depends on the id, and each ninth one fails."""
    writer, number = LineWriter(of), ref(id).number
    if number % 9 == 0:
        return writer.failed(ref(id), Failure("context_overflow", "too long"), now)
    text = f"{NOTE} {id} \u00e4\u2028 " * (1 + number * 7919 % 7)
    answer = Answer((), text.encode(), FinishReason.STOP, "demo", created=int(now))
    return writer.answered(ref(id), answer_object(answer), now)


def run(
    path: Path, wanted: Iterable[str], of: dict[str, Any] | None = None, **more: Any
) -> OutputJournal:
    """A whole run; returns the closed journal."""
    of = of or fingerprint()
    with Quick().used(), OutputJournal.open(path, of, **more) as journal:
        for id in wanted:
            if id not in journal.done:
                journal.append(line(id, of))
    return journal


def untimed(data: bytes) -> list[str]:
    """The lines of an output without the fields that depend on times."""
    assert data == b"" or data.endswith(b"\n")
    return [_untimed(each) for each in data.split(b"\n")[:-1]]


def _untimed(each: bytes) -> str:
    value = json.loads(each)
    if value["response"]:
        value["response"]["body"]["created"] = 0
    value["timings"] = {}
    value["provenance"]["time"] = value["sha256"] = ""
    return json.dumps(value)


def in_file(path: Path) -> list[str]:
    """The ids of an output, in its order."""
    return [json.loads(each)["id"] for each in path.read_bytes().split(b"\n")[:-1]]


def beside(path: Path) -> Sequence[str]:
    """What lies beside an output, without its own name and the dot behind."""
    names = (each.name.removeprefix(f"{path.name}.") for each in path.parent.iterdir())
    return sorted(name for name in names if name != path.name)
