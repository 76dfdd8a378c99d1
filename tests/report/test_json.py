"""The JSON object: OpenAI's shape, ASCII, no NaN, exact bytes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.options import FinishReason
from capt_local.errors import UsageError
from capt_local.report.answers import summary_line, views
from capt_local.report.html import page
from capt_local.report.json import (
    Answer,
    answer_from,
    answer_object,
    dumps,
)
from capt_local.report.views import plain
from tests.report.answers import an_answer as made
from tests.report.answers import step


def an_answer(**changes: object) -> Answer:
    steps = [
        step(0, b"5 \xc2"),
        step(1, b"\xb5", instead=b"m", contrast=2.5),
        step(2, b"g", finish=FinishReason.STOP),
    ]
    base = replace(made([]), steps=steps, text="5 µg".encode(), notices=("a notice",))
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_shape() -> None:
    found = answer_object(an_answer(), top_logprobs=1)
    assert found["object"] == "chat.completion"
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "5 µg"}
    assert choice["finish_reason"] == "stop"
    second = choice["logprobs"]["content"][1]
    assert (second["bytes"], second["token"], second["logprob"]) == ([0xB5], "\ufffd", -0.5)
    assert len(second["top_logprobs"]) == 1
    assert second["capt"]["delta"] == 2.5
    assert second["capt"]["changed"] is True
    assert second["capt"]["target_rank"] == 3
    assert {"target_top", "expert_top", "base_top"} <= set(second["capt"])
    assert found["usage"]["prompt_tokens"] == 10
    assert found["usage"]["completion_tokens"] == 3
    assert found["capt"] == {
        "changed": 1,
        "share": pytest.approx(1 / 3),
        "mean_contrast": pytest.approx(5.5 / 3),
        "mean_contrast_tokens": 3,
        "weights": [
            {"powers": [1.0, 0.5, 0.5], "weight": 0.25},
            {"powers": [1.0, 1.0, 1.0], "weight": 0.75},
        ],
    }
    assert (found["ai_label"], found["human_review"]) == ("AIRPT", "none")
    assert found["warnings"] == ["a notice"]


def test_the_mean_is_over_the_tokens_at_which_expert_and_base_were_asked() -> None:
    asked = step(0, b"a", contrast=3.0)
    not_asked = replace(step(1, b"b"), contrast=None, proxies_skipped=True)
    found = answer_object(an_answer(steps=[asked, not_asked, asked]))
    assert (found["capt"]["mean_contrast"], found["capt"]["mean_contrast_tokens"]) == (3.0, 2)
    found = answer_object(an_answer(steps=[not_asked]))
    assert (found["capt"]["mean_contrast"], found["capt"]["mean_contrast_tokens"]) == (None, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_whatever_is_written_is_ascii_and_strict_json(value: object) -> None:
    text = dumps(value)
    assert text.isascii()
    assert "\n" not in text

    def refuse(name: str) -> object:
        raise AssertionError(name)

    json.loads(text, parse_constant=refuse)


def test_lone_surrogates_do_not_get_out() -> None:
    value = {"a": np.float32(0.5), "b": np.int64(3), "c": np.float32("nan"), "d": "a\ud800b"}
    assert json.loads(dumps(value)) == {"a": 0.5, "b": 3, "c": None, "d": "a?b"}


CANARY = "zyzzyva-canary"


def stored(answer: Answer) -> Any:
    return json.loads(dumps(answer_object(answer, top_logprobs=3)))


def test_an_answer_comes_back_as_it_was() -> None:
    steps = [
        replace(step(0, b"5 \xc2", finish=None), expert_logp=-0.5, base_logp=-2.0),
        step(1, b"\xb5", instead=b"m", contrast=2.5),
        replace(step(2, b"g"), contrast=None, proxies_skipped=True),
        replace(step(3, b"", finish=FinishReason.STOP), likeliest=99),
    ]
    for raw in (False, True):
        answer = an_answer(steps=steps, text="5 µg".encode(), raw=raw)
        alone = an_answer(steps=steps[:1], text=b"5 \xc2")
        # The target's own answer is kept without its candidates.
        bare = replace(steps[0], top=(), target_top=(), expert_top=(), base_top=())
        kept = replace(alone, steps=[replace(bare, finish=FinishReason.STOP)])
        found = answer_from(stored(replace(answer, alone=alone)))
        assert found == replace(answer, notices=("a notice",), alone=kept)


def test_warnings_are_told_once_and_on_one_line() -> None:
    value = stored(an_answer(finish=FinishReason.ERROR))
    assert answer_from(value).notices == ("a notice",)
    value["warnings"].append("first\n\nerror: not ours\u2028and more")
    assert answer_from(value).notices == ("a notice", "first error: not ours and more")


def test_numbers_that_were_not_finite_are_not_known() -> None:
    answer = an_answer(steps=[step(0, b"a", logp=-math.inf, target_logp=math.nan)], text=b"a")
    value = stored(answer)
    token = value["choices"][0]["logprobs"]["content"][0]
    assert token["logprob"] is None and token["capt"]["target_logprob"] is None
    assert math.isnan(answer_from(value).steps[0].target_logp)


def test_bytes_that_an_interruption_held_back_are_there() -> None:
    answer = an_answer(steps=[step(0, b"a")], text=b"a EN", finish=FinishReason.INTERRUPTED)
    assert answer_from(stored(answer)).text == b"a EN"
    cut = an_answer(steps=[step(0, b"a\xc2")], text="aµ".encode(), finish=FinishReason.INTERRUPTED)
    assert answer_from(stored(cut)).text.decode() == "aµ"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return (
        [path, *(p for key, item in items for p in places(item, (*path, key)))]
        if path
        else [p for key, item in items for p in places(item, (key,))]
    )


BASE = stored(an_answer())
WRONG: list[Any] = [
    *(None, CANARY, -1, 1.5, 1e299, True, 10**400),
    *([], [CANARY], [1, 2], {CANARY: CANARY}, [[[]]]),
]


@given(st.sampled_from(places(BASE)), st.sampled_from(WRONG), st.booleans())
def test_no_broken_field_gets_further_or_is_repeated(
    path: tuple[Any, ...], wrong: Any, gone: bool
) -> None:
    value = json.loads(json.dumps(BASE))
    held = value
    for key in path[:-1]:
        held = held[key]
    if gone:
        del held[path[-1]]
    else:
        held[path[-1]] = wrong
    try:
        found = answer_from(value)
    except UsageError as error:
        assert CANARY not in str(error) and "\n" not in str(error)
    else:
        # What was let through can be shown.
        assert isinstance(found.text, bytes)
        assert all(plain(view) for view in views(found))
        assert summary_line(found) and page(found)


def test_contradictions_are_refused() -> None:
    value = stored(an_answer())
    value["choices"][0]["message"]["content"] = CANARY
    with pytest.raises(UsageError, match="text is not that of its tokens"):
        answer_from(value)
    value = stored(an_answer())
    value["choices"][0]["logprobs"]["content"][0]["capt"]["changed"] = True
    with pytest.raises(UsageError, match="contradicts itself"):
        answer_from(value)
