"""Whether a finished answer is of the form that was asked for."""

from __future__ import annotations

import pytest

from capt_local.decoding.structured import structure_problem


@pytest.mark.parametrize(
    ("structured", "finish", "told"),
    [
        (None, "stop", ""),
        ("complete", "stop", ""),
        ("incomplete", "length", "largest length"),
        ("incomplete", "stop", "not complete"),
    ],
)
def test_what_is_wrong_is_told(structured: str | None, finish: str, told: str) -> None:
    choice = {"message": {"content": "{}"}, "finish_reason": finish}
    found = structure_problem({"choices": [choice], "capt": {"structured": structured}})
    assert told in found and bool(found) == bool(told)
