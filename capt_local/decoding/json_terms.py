"""Words of JSON Schema, and JSON values in a grammar."""

from __future__ import annotations

import json

# What says nothing about the form of an instance.
ABOUT = {"title", "description", "$comment", "$schema", "$id", "examples", "default",
          "deprecated", "readOnly", "writeOnly", "$defs", "definitions"}  # fmt: skip
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum"},
    "boolean": set(),
    "null": set(),
}  # fmt: skip
WHOLE = '("0" | [1-9] [0-9]{0,15})'
FRACTION = '("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?'
# Of a string, between its quotation marks.
_CHARACTER = r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" hex)'
# No half of a pair: readers count it in different ways.
_HEX = "([0-9a-cA-CefEF] [0-9a-fA-F] | [dD] [0-7]) [0-9a-fA-F]{2}"
GENERAL = {
    "space": '" "?',
    "character": _CHARACTER,
    "hex": _HEX,
    "string": r'"\"" character* "\""',
    "integer": f'"-"? {WHOLE}',
    "number": f'"-"? {WHOLE} {FRACTION}',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string ":" space value',
    "object": '"{" space (member ("," space member)* space)? "}"',
    "array": '"[" space (value ("," space value)* space)? "]"',
    "value": "object | array | string | number | boolean | null",
}
# Keywords of JSON Schema, which may be repeated in an error; other names are the user's.
KNOWN = {"$anchor", "$dynamicRef", "$ref", "additionalItems", "additionalProperties", "allOf",
          "anyOf", "const", "contains", "contentEncoding", "contentMediaType", "dependencies",
          "dependentRequired", "dependentSchemas", "else", "enum", "exclusiveMaximum",
          "exclusiveMinimum", "format", "if", "items", "maxContains", "maximum", "maxItems",
          "maxLength", "maxProperties", "minContains", "minimum", "minItems", "minLength",
          "minProperties", "multipleOf", "not", "oneOf", "pattern", "patternProperties",
          "prefixItems", "properties", "propertyNames", "required", "then", "type",
          "unevaluatedItems", "unevaluatedProperties", "uniqueItems"}  # fmt: skip


def literal(value: object) -> str:
    """A JSON value as a literal of a grammar, character by character."""
    text = json.dumps(value, ensure_ascii=False)
    # A lone surrogate is no character; JSON can still spell it.
    spelt = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    return '"' + spelt.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_of(value: object, kind: object) -> bool:
    """Whether a value is of a type of JSON Schema, or of one of several."""
    if isinstance(kind, list):
        return any(is_of(value, each) for each in kind)
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    kinds = {"string": str, "array": list, "object": dict}
    return isinstance(kind, str) and kind in kinds and isinstance(value, kinds[kind])
