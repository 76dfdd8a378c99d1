"""Whether a finished answer is of the form that was asked for."""

from __future__ import annotations

from typing import Any

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
