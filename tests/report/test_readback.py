"""What `--json` wrote is read back as it was; anything else is refused without its text."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.step import FinishReason
from capt_local.errors import UsageError
from capt_local.report.answers import summary_line, views
from capt_local.report.html import page
from capt_local.report.json import Answer, Stored, answer_from, answer_object, dumps, missing
from capt_local.report.views import plain
from tests.report.steps import step
from tests.report.test_json import an_answer

CANARY = "zyzzyva-canary"


def stored(answer: Answer, **more: Any) -> Any:
    return json.loads(dumps(answer_object(answer, top_logprobs=3, **more)))


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
        found = answer_from(stored(answer, alone=alone))
        assert found.answer == replace(answer, steps=steps, notices=("a notice",))
        assert found == Stored(
            found.answer, replace(alone, steps=[replace(bare, finish=FinishReason.STOP)])
        )


def test_the_models_of_further_pairs_are_counted() -> None:
    counts = {"target": 10, "expert": 12, "base": 12, "expert-2": 11, "base-2": 11}
    value = stored(an_answer(prompt_tokens=counts))
    value["usage"]["prompt_tokens_by_model"][CANARY] = CANARY
    assert answer_from(value).answer.prompt_tokens == counts


def test_warnings_are_not_told_twice() -> None:
    cut = an_answer(finish=FinishReason.ERROR)
    assert answer_from(stored(cut)).answer.notices == ("a notice",)


def test_a_warning_is_one_line() -> None:
    value = stored(an_answer())
    value["warnings"] = ["first\n\nerror: not ours\u2028and more"]
    assert answer_from(value).answer.notices == ("first error: not ours and more",)


def test_numbers_that_were_not_finite_are_not_known() -> None:
    answer = an_answer(steps=[step(0, b"a", target_logp=-math.inf)], text=b"a")
    assert math.isnan(answer_from(stored(answer)).answer.steps[0].target_logp)


def test_bytes_that_an_interruption_held_back_are_there() -> None:
    answer = an_answer(steps=[step(0, b"a")], text=b"a EN", finish=FinishReason.INTERRUPTED)
    assert answer_from(stored(answer)).answer.text == b"a EN"
    cut = an_answer(steps=[step(0, b"a\xc2")], text="aµ".encode(), finish=FinishReason.INTERRUPTED)
    assert answer_from(stored(cut)).answer.text.decode() == "aµ"


def test_what_the_report_would_miss_is_told() -> None:
    bare = json.loads(dumps(answer_object(an_answer())))
    assert "--top-logprobs" in missing(answer_from(bare).answer)[0]
    assert not missing(answer_from(stored(an_answer())).answer)


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
        assert isinstance(found.answer.text, bytes)
        assert all(plain(view) for view in views(found.answer, found.alone))
        assert summary_line(found.answer) and page(found.answer, found.alone)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("powers", []),
        ("powers", [1, 2]),
        ("powers", [1, None, 1]),
        ("weight", None),
        ("weight", 1e299),
        ("weight", -0.5),
    ],
)
def test_weights_that_mean_nothing(name: str, wrong: Any) -> None:
    value = stored(an_answer())
    value["capt"]["weights"] = [{"powers": [1, 1, 1], "weight": 1.0, name: wrong}]
    with pytest.raises(UsageError, match=rf"weights\[0\].{name} is not"):
        answer_from(value)


def test_a_count_that_no_machine_counts_to() -> None:
    value = stored(an_answer())
    value["usage"]["prompt_tokens_by_model"] = {"target": 10**400}
    with pytest.raises(UsageError, match=r"by_model\.target is not a whole number"):
        answer_from(value)


def test_a_provenance_that_is_too_deep_to_be_written_again() -> None:
    value = stored(an_answer())
    for _ in range(700):
        value["provenance"] = {CANARY: value["provenance"]}
    with pytest.raises(UsageError, match="provenance is not nested as ours"):
        answer_from(value)


@pytest.mark.parametrize("value", [None, [], 3, CANARY, {}, {"choices": []}])
def test_what_is_no_answer_at_all(value: object) -> None:
    with pytest.raises(UsageError, match="generate --json"):
        answer_from(value) if value != {"choices": []} else answer_from({})
    with pytest.raises(UsageError):
        answer_from(value)


def test_an_answer_of_another_server_is_told_what_it_lacks() -> None:
    value = stored(an_answer())
    del value["choices"][0]["logprobs"]["content"][1]["capt"]
    with pytest.raises(UsageError, match=r"content\[1\].capt. Write it with .*--top-logprobs 3"):
        answer_from(value)


def test_contradictions_are_refused() -> None:
    value = stored(an_answer())
    value["choices"][0]["message"]["content"] = CANARY
    with pytest.raises(UsageError, match="text is not that of its tokens"):
        answer_from(value)
    value = stored(an_answer())
    value["choices"][0]["logprobs"]["content"][0]["capt"]["changed"] = True
    with pytest.raises(UsageError, match="contradicts itself"):
        answer_from(value)
