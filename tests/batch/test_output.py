from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any

from capt_local.batch.output import (
    LineWriter,
    answers_table,
    differences,
    digest_of,
    fingerprint_of,
    is_sealed,
)
from capt_local.batch.records import BatchRecord, record_seed
from capt_local.bundles.store import find
from capt_local.decoding.options import GenerateOptions, SampleOptions, Structure
from capt_local.report.json import answer_object
from tests.batch.runs import NOTE, fingerprint
from tests.report.answers import an_answer

OF = fingerprint()
ASKED = BatchRecord(7, "a-1", NOTE, "cd" * 32)
NOW = 1_800_000_000.9
ANSWER = an_answer([(b"No", b"Yes", 1.5), (b" fever\xe2\x80\xa8.", None, 0.25)])


def read(line: Any) -> dict[str, Any]:
    data = line.encode()
    assert b"\n" not in data and data.isascii() and is_sealed(data)
    value: dict[str, Any] = json.loads(data)
    return value


def test_a_line_has_the_shape_of_openais_batches() -> None:
    value = read(LineWriter(OF).answered(ASKED, answer_object(ANSWER), NOW))
    assert list(value) == [
        "id", "custom_id", "response", "error", "capt", "timings", "provenance", "sha256"
    ]  # fmt: skip
    assert value["id"] == value["custom_id"] == "a-1" and value["error"] is None
    response, body = value["response"], value["response"]["body"]
    assert response["status_code"] == 200 and response["request_id"] == body["id"]
    assert body["object"] == "chat.completion" and body["created"] == int(NOW)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "No fever\u2028."},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert body["usage"]["prompt_tokens"] == 10 and body["usage"]["completion_tokens"] == 2
    assert value["capt"]["share"] == 0.5 and value["capt"]["mean_contrast"] == 0.875
    assert value["timings"] == {
        "load_seconds": 0.5, "prompt_seconds": 0.25, "generate_seconds": 1.5
    }  # fmt: skip


def test_the_provenance_of_a_line() -> None:
    answer = answer_object(dataclasses.replace(ANSWER, notices=("said",)))
    provenance = read(LineWriter(OF).answered(ASKED, answer, NOW))["provenance"]
    assert provenance == {
        "time": "2027-01-15T08:00:00Z",
        "status": "ok",
        "run": digest_of(OF),
        "versions": {"capt_local": "1", "llama_cpp": "b1"},
        "bundle": {"id": "demo", "manifest_sha256": "ab" * 32},
        "models": {role: role.encode().hex() for role in ("target", "expert", "base")},
        "method": "capt",
        "seed": record_seed(0, "a-1"),
        "record": {"line": 7, "sha256": "cd" * 32},
        "ai_label": "AIRPT",
        "human_review": "none",
        "finish_reason": "stop",
        "output_sha256": digest_of("No fever\u2028."),
        "warnings": ["said"],
    }


def demo(options: GenerateOptions) -> dict[str, Any]:
    return fingerprint_of(
        find("demo"),
        options,
        versions={"capt_local": "1"},
        build={"platform": "x"},
        prompt={"template": digest_of(NOTE)},
        computing={"threads": 2},
    )


def test_a_fingerprint_is_of_everything_that_decides_an_answer() -> None:
    first = demo(GenerateOptions())
    assert set(first["models"]) == {"target", "expert", "base"} and first["bundle"]["id"] == "demo"
    assert re.fullmatch("[0-9a-f]{64}", first["bundle"]["manifest_sha256"])
    for changed, names in [
        (GenerateOptions(max_tokens=9), "parameters.max_tokens (512, now 9)"),
        (GenerateOptions(sample=SampleOptions(seed=3)), "parameters.sample.seed (0, now 3)"),
        (GenerateOptions(stop=(NOTE,)), "parameters.stop"),
        (GenerateOptions(structure=Structure(json.dumps({"title": NOTE}))), "parameters.structure"),
    ]:
        other = demo(changed)
        assert differences(first, other) == names
        assert digest_of(other) != digest_of(first)
        assert NOTE not in json.dumps(other)
    assert demo(GenerateOptions()) == first


def test_a_table_has_a_column_a_field_and_its_place() -> None:
    def line(id: str, content: str, facts: list[dict[str, object]], **more: object) -> bytes:
        body = {"choices": [{"message": {"content": content}}]}
        whole = {"id": id, "error": None, "response": {"body": body}, **more}
        return json.dumps({**whole, "capt": {"sources": {"facts": facts}}}).encode()

    places = [
        {"path": "drugs[0].name", "source": [3, 9], "page": 2},
        {"path": "drugs[0].dose", "source": None, "page": None},
    ]
    table = answers_table(
        [
            line("1", '{"drugs": [{"name": "aspirin", "dose": "=cmd()", "prn": null}]}', places),
            line("2", "Free, text", []),
            line("3", "", [], response=None, error={"code": "abstained"}),
        ]
    )
    header, *rows = csv.reader(io.StringIO(table))
    assert header == [
        "id", "status", "drugs[0].name", "drugs[0].name source", "drugs[0].dose",
        "drugs[0].dose source", "drugs[0].prn", "drugs[0].prn source", "answer",
    ]  # fmt: skip
    assert rows[0] == ["1", "ok", "aspirin", "3-9 p. 2", "'=cmd()", "unsupported", "", "", ""]
    assert rows[1][-1] == "Free, text" and rows[2][:2] == ["3", "abstained"]
    table = answers_table([line("=1+1", '{"@SUM(1)": 1, "-1": [{"=x": "\\tb"}]}', [])])
    assert list(csv.reader(io.StringIO(table))) == [
        ["id", "status", "'@SUM(1)", "'@SUM(1) source", "'-1[0].=x", "'-1[0].=x source"],
        ["'=1+1", "ok", "1", "", "'\tb", ""],
    ]
