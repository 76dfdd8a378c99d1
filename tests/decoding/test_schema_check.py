"""Whether a finished answer is of the form that was asked for."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest

from capt_local.decoding.structured import SchemaCheck, structure_problem
from capt_local.errors import UsageError

CANARY = "zyzzyva-canary"
SCHEMA = {
    "type": "object",
    "properties": {"dose": {"type": "integer", "maximum": 10}},
    "required": ["dose"],
}
NAME = "The schema (--json-schema)"


def answer(text: str, *, finish: str = "stop", raw: bool = False, **capt: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"text": text} if raw else {"message": {"content": text}}
    return {"choices": [{**said, "finish_reason": finish}], "capt": capt}


@pytest.mark.parametrize(
    ("text", "finish", "told"),
    [
        ('{"dose": 11}', "stop", "maximum"),
        ("{}", "stop", "required"),
        ('{"dose": 1, "dose": 2}', "stop", "not valid JSON"),
        ('{"dose": NaN}', "stop", "not valid JSON"),
        (f'{{"{CANARY}": ', "length", "largest length"),
        (f'{{"dose": "{CANARY}"}}', "stop", "type"),
    ],
)
def test_what_is_wrong_is_told_without_the_answer(text: str, finish: str, told: str) -> None:
    found = structure_problem(answer(text, finish=finish), SchemaCheck(SCHEMA, NAME))
    assert told in found
    assert CANARY not in found


def test_what_is_no_schema_is_refused_without_its_text() -> None:
    with pytest.raises(UsageError) as caught:
        SchemaCheck({"type": CANARY}, NAME)
    assert " at type" in str(caught.value) and CANARY not in str(caught.value)


def test_a_reference_elsewhere_is_never_fetched() -> None:
    form = SchemaCheck({"$ref": "http://127.0.0.1:9/schema.json"}, NAME)
    assert "reference" in form.problem("{}")


DOUBLING = {f"a{n}": {"oneOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "^(?:(?:a+)+c|a{60})$"}, json.dumps("a" * 60)),
        ({"patternProperties": {"^(a+)+$": {}}}, json.dumps({"a" * 60 + "b": 1})),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": {"type": "integer"}},
         json.dumps({"a" * 60 + "b": 1})),
        ({"$ref": "#/$defs/a0", "$defs": {**DOUBLING, "a40": {"type": "integer"}}}, "5"),
    ],
    ids=["pattern", "names", "other names", "references"],
)  # fmt: skip
def test_a_hostile_schema_does_not_hold_up_the_check(schema: dict[str, Any], text: str) -> None:
    """Python's own patterns, or references that double, would take years."""
    started = time.monotonic()
    found = SchemaCheck(schema, NAME).problem(text)
    assert time.monotonic() - started < 30
    assert found in ("", "The schema has a reference or a pattern that cannot be followed.")


@pytest.mark.parametrize(
    ("schema", "text", "rule"),
    [
        ({"pattern": "b."}, '"abc"', ""),
        ({"pattern": "^b"}, '"ab"', "pattern"),
        ({"pattern": "^.$"}, '"\\n"', "pattern"),
        ({"pattern": "^ü\\t$"}, '"ü\\t"', ""),
        ({"patternProperties": {"^x": {"type": "string"}}}, '{"y": 1, "x1": 2}', "type"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"x": 1}', ""),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"y": 1}',
         "additionalProperties"),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "null"}}, '{"y": 1}', ""),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "null"}}, '{"z": 1}', "type"),
    ],
)  # fmt: skip
def test_patterns_mean_what_they_mean_elsewhere(schema: Any, text: str, rule: str) -> None:
    wanted = f"The answer breaks a rule of the schema ({rule})." if rule else ""
    assert SchemaCheck(schema, NAME).problem(text) == wanted
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    assert valid == (not rule)
