"""Whether a finished answer is an instance of the schema that it was to follow.

While it is made, an answer is constrained by a grammar, which has the form of the schema but not
all of its rules, and an answer that reaches its largest length breaks off. So the finished text is
validated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from capt_local.errors import UsageError
from capt_local.strict_json import NotReadable, parse_json

_BROKEN_OFF = "The answer reached its largest length before its form was complete."


def structure_problem(answer: Mapping[str, Any], schema: SchemaCheck | None) -> str:
    """Why an answer has not the form that was requested; empty where it has, or none was.

    Args:
        answer: as `report.json.answer_object` gives it.
        schema: None where there is none, but perhaps a grammar.
    """
    choice = answer["choices"][0]
    if schema is None:
        return _BROKEN_OFF if answer["capt"].get("structured") == "incomplete" else ""
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return schema.problem(text, cut=choice["finish_reason"] == "length")


class SchemaCheck:
    """Validates answers against a JSON schema.

    Args:
        schema: as it was read.
        name: what errors call it.

    Raises:
        UsageError: it is no schema; the message holds nothing of it.
    """

    def __init__(self, schema: Any, name: str) -> None:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except SchemaError:
            raise UsageError(f"{name} is not a valid JSON schema.") from None
        # With a registry of its own, nothing is ever fetched for a reference.
        self._validator = kind(schema, registry=Registry())

    def problem(self, text: str, *, cut: bool = False) -> str:
        """Why a text is no instance; empty where it is one. Repeats nothing of the text.

        Args:
            text: of the answer.
            cut: whether it reached its largest length.
        """
        from referencing.exceptions import Unresolvable

        try:
            value: Any = parse_json(text.encode("utf-8", "replace"))
        except NotReadable:
            return _BROKEN_OFF if cut else "The answer is not valid JSON."
        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except (Unresolvable, RecursionError, re.error):
            return "The schema has a reference or a pattern that cannot be followed."
        if error is None:
            return ""
        return f"The answer breaks a rule of the schema ({error.validator})."
