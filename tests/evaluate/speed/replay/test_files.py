"""Traces as files: written and read back, and refused when broken."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.errors import UsageError
from capt_local.evaluate.speed.replay.files import as_lines, read_trace
from capt_local.evaluate.speed.replay.synthetic import SHARES, synthetic
from capt_local.evaluate.speed.replay.trace import Offer, Place, Trace, Walked

CANARY = "PATIENT-CANARY"
PLACE = Place(
    gated=False,
    own=True,
    sure=0.9375,
    offers={
        "lookup": Offer((4, 4, 4), right=2, plausible=3, first=4),
        "expert-draft": Offer((0,), right=0, plausible=0),
    },
)
TRACE = Trace(
    "recorded",
    (
        Walked({"target": 30, "expert": 41, "base": 41}, (PLACE, Place(True, True, 1.0, {}))),
        Walked({"target": 7}, (Place(False, False, 0.25, {}),)),
    ),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text(text)
    return path


@pytest.mark.parametrize("trace", [TRACE, *(synthetic(share, answers=2) for share in SHARES)])
def test_a_trace_comes_back_as_it_was(trace: Trace, tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, as_lines(trace)), "The trace") == trace


def test_a_trace_holds_numbers_alone() -> None:
    for line in as_lines(TRACE).splitlines()[1:]:

        def check(value: Any, key: str = "") -> None:
            if isinstance(value, dict):
                for name, each in value.items():
                    check(each, name)
            elif isinstance(value, list):
                for each in value:
                    check(each, key)
            elif isinstance(value, str):
                assert key == "grades" and value.isdigit()

        check(json.loads(line))


def _changed(**changes: object) -> str:
    """The trace with a key of its first place, offer or answer replaced."""
    head, first, *rest = as_lines(TRACE).splitlines()
    answer = json.loads(first)
    for name, value in changes.items():
        for holder in (answer, answer["places"][0], answer["places"][0]["offers"]["lookup"]):
            if name in holder:
                holder[name] = value
    return "\n".join([head, json.dumps(answer), *rest])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        (f'{{"text": "{CANARY}"}}', "line 1: this is no trace"),
        (f"{CANARY}", "line 1: not JSON"),
        ('{"capt_trace": 2, "source": "x"}', "line 1: this version reads"),
        ('{"capt_trace": 1, "source": ""}', 'line 1: "source"'),
        ('{"capt_trace": 1}', "line 1: the keys"),
        ('{"capt_trace": 1, "source": "x"}', "it holds no answer"),
        (_changed(own="yes"), 'line 2: "own" must be true or false'),
        (_changed(sure=1.5), "line 2: a probability"),
        (_changed(sure=True), 'line 2: "sure" must be a number'),
        (_changed(gated=True, own=False), "line 2: a token that alone"),
        (_changed(right=4), "line 2: the counts"),
        (_changed(right=3, plausible=2), "line 2: the counts"),
        (_changed(right=True), 'line 2: "right" must be a whole number'),
        (_changed(right=10**400), "line 2: "),
        (_changed(grades=CANARY), 'line 2: "grades" must be digits'),
        (_changed(grades=""), 'line 2: "grades" must be digits'),
        (_changed(grades="٣"), 'line 2: "grades" must be digits'),
        (_changed(grades="1" * 5000), "line 2: a draft has"),
        (_changed(first=-2), "line 2: the grade"),
        (_changed(offers={str(n): {} for n in range(99)}), 'line 2: "offers"'),
        (_changed(offers=[CANARY]), 'line 2: "offers"'),
        (_changed(prompt={"expert": 3}), "line 2: the length of the target's"),
        (_changed(prompt={"target": 0}), "line 2: a prompt has a length"),
        (_changed(prompt={"target": 3.0}), 'line 2: "prompt" must be a whole number'),
        (_changed(places=[]), "line 2: an answer has"),
        (_changed(places=[[CANARY]]), 'line 2: "places"'),
        (_changed(places=CANARY), 'line 2: "places"'),
        (as_lines(TRACE)[:-30], "line 3: not JSON"),
        (as_lines(TRACE) + as_lines(TRACE), "line 4: the keys"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read_trace(written(tmp_path, text), "The trace")
    assert problem in str(error.value) and CANARY not in str(error.value)


@given(st.integers(0, len(as_lines(TRACE)) - 1), st.characters(codec="utf-8"))
def test_one_wrong_sign_is_read_or_refused_never_crashed_on(place: int, sign: str) -> None:
    text = as_lines(TRACE)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UsageError):
        read_trace(written(Path(folder), text[:place] + sign + text[place + 1 :]), "The trace")
