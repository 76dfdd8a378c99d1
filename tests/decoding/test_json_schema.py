"""What a schema may say: anything that a grammar can keep, and an error by name for the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capt_local.decoding.json_schema import grammar_of
from capt_local.errors import UsageError

CANARY = "zyzzyva"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": CANARY}, '"pattern"'),
        ({"type": "string", "format": "date"}, '"format"'),
        ({"type": "number", "minimum": 3}, '"minimum"'),
        ({"type": "number", "multipleOf": 3}, '"multipleOf"'),
        ({"type": "integer", "minimum": 0, "maximum": 1000}, "1000 numbers"),
        ({"type": "integer", "maximum": 10}, '"maximum"'),
        ({"type": "integer", "minimum": False}, '"minimum"'),
        ({"oneOf": [{"type": "null"}]}, '"oneOf"'),
        ({"allOf": [{"type": "null"}]}, '"allOf"'),
        ({"type": "object", "properties": {"a": {"not": {}}}}, '"not"'),
        ({"type": "object", "patternProperties": {}}, '"patternProperties"'),
        ({"type": "object", "properties": {}, "required": [CANARY]}, "does not describe"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, "only false"),
        ({"type": "object", "properties": []}, "no object"),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "array", "items": False}, "false"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "below"),
        ({"type": "array", "minItems": -1}, "outside"),
        ({"type": "string", "maxLength": 10**6}, "outside 0 to 1000"),
        ({"type": "string", "maxLength": True}, "outside"),
        ({"type": ["string", "null"], "maxLength": 2}, '"maxLength"'),
        ({"type": CANARY}, "type"),
        ({"maxLength": 2}, "type"),
        ({CANARY: 2}, "not of JSON Schema"),
        ({"type": "null", CANARY: 2}, "not of JSON Schema"),
        ({"enum": []}, "empty"),
        ({"enum": 3}, "no list"),
        ({"enum": ["a"], "type": "integer"}, "nothing"),
        ({"enum": ["a"], "maxLength": 1}, '"maxLength"'),
        ({"$ref": f"https://{CANARY}/schema"}, "$ref"),
        ({"$ref": f"#/$defs/{CANARY}"}, "$ref"),
        ({"$ref": "#"}, "itself"),
        ({"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {}}}, '"type"'),
        ([], "no object"),
        (False, "false"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(UsageError) as told:
        grammar_of(json.dumps(schema).encode(), "The schema (--json-schema)")
    assert str(told.value).startswith("The schema (--json-schema) ")
    assert said in str(told.value) and CANARY not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"zyzzyva", b"{", b'{"a": 1, "a": 2}', b'{"const": NaN}', b'{"const": 1e999}',
        b"\xff", b"[" * 100_000, b'{"const": ' + b"9" * 5000 + b"}",
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match=r"^The schema is (not JSON|larger)") as told:
        grammar_of(text)
    assert CANARY not in str(told.value)


def test_a_deep_or_large_schema_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="more than 32 levels deep"):
        grammar_of(json.dumps(deep).encode())
    with pytest.raises(UsageError, match="larger than 64 KiB"):
        grammar_of(b'{"title": "' + b"a" * 70_000 + b'"}')


def test_what_says_nothing_about_the_form_is_left_out() -> None:
    bare = {"type": "object", "properties": {"a": {"type": "null"}}}
    about = {**bare, "title": "T", "description": "D", "$schema": "https://json-schema.org/x"}
    assert grammar_of(json.dumps(about).encode()) == grammar_of(json.dumps(bare).encode())
