"""Whether a structured answer is an instance of the schema that it was to follow.

While it is made, an answer is kept to a grammar, which has the schema's form but not all of its
rules, and an answer that ends at its largest length breaks off. So the finished text is validated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from capt_local.errors import UsageError
from capt_local.strict.json import parse_json
from capt_local.strict.problems import NotReadable

_BROKEN_OFF = "The answer reached its largest length before its form was complete."
_NOT_JSON = "The answer is not valid JSON."


def problem(answer: Mapping[str, Any], form: Form | None) -> str:
    """Why an answer is not of the form that was asked for; empty where it is, or none was.

    Args:
        answer: as `report.json.answer_object` gives it.
        form: of a schema; None where there is none, but perhaps a grammar.
    """
    if form is not None:
        return form.problem(answer)
    return _BROKEN_OFF if answer["capt"].get("structured") == "incomplete" else ""


class Form:
    """A JSON schema.

    Args:
        schema: as it was read.
        name: what errors call it.

    Raises:
        UsageError: it is no schema. Nothing of it is told.
    """

    def __init__(self, schema: Any, name: str) -> None:
        """Checks the schema itself."""
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

    def problem(self, answer: Mapping[str, Any]) -> str:
        """Why an answer is not of the form; empty where it is. Repeats nothing of the answer.

        Args:
            answer: as `report.json.answer_object` gives it.
        """
        choice = answer["choices"][0]
        said = choice["message"]["content"] if "message" in choice else choice["text"]
        try:
            value: Any = parse_json(said.encode("utf-8", "replace"))
        except NotReadable:
            return _BROKEN_OFF if choice["finish_reason"] == "length" else _NOT_JSON
        from referencing.exceptions import Unresolvable

        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except (Unresolvable, RecursionError, re.error):
            return "The schema has a reference or a pattern that cannot be followed."
        if error is None:
            return ""
        return f"The answer breaks a rule of the schema ({error.validator})."
