"""Parameters survive their way through JSON, and what is none is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.batch.opening import Opening
from capt_local.batch.packing import packed, unpacked
from capt_local.bundle import store
from capt_local.decoding.options import (
    CombineOptions,
    GenerateOptions,
    Method,
    SampleOptions,
    Structure,
)
from capt_local.engine.options import LoadOptions
from capt_local.errors import UsageError


def through_json(value: Any) -> Any:
    return unpacked(type(value), json.loads(json.dumps(packed(value))))


def test_everything_that_a_worker_is_told_comes_back() -> None:
    options = GenerateOptions(
        method=Method.TARGET,
        combine=CombineOptions(alphas=(0.5,)),
        sample=SampleOptions(temperature=0.25, seed=2**53 - 1),
        structure=Structure('root ::= "a"', "json-schema"),
    )
    load = LoadOptions(gpu_layers="all", context=77, threads=3)
    made = Opening(store.find("demo"), options, load, date="2026-01-02", raw=True, parallel=5)
    assert through_json(made) == made
    assert made.day is not None and made.day.year == 2026


@given(
    st.floats(0, 5, allow_nan=False),
    st.integers(0, 2**53),
    st.lists(st.text(min_size=1), max_size=3),
    st.one_of(st.just("auto"), st.just("all"), st.integers(0, 200)),
)
def test_any_values_come_back(temperature: float, seed: int, stop: list[str], layers: Any) -> None:
    sample = SampleOptions(temperature=temperature, seed=seed)
    options = GenerateOptions(sample=sample, stop=tuple(stop))
    assert through_json(options) == options
    assert through_json(LoadOptions(gpu_layers=layers)) == LoadOptions(gpu_layers=layers)


def test_a_field_that_is_not_there_has_its_default() -> None:
    assert unpacked(SampleOptions, {"seed": 4}) == SampleOptions(seed=4)


@pytest.mark.parametrize(
    "value",
    [
        {"seed": "4"}, {"seed": 4.0}, {"seed": True}, {"seed": None}, {"temperature": "warm"},
        {"unknown": 1}, [], "text", None,
    ],
)  # fmt: skip
def test_what_is_not_of_its_kind_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="field") as caught:
        unpacked(SampleOptions, value)
    assert "warm" not in str(caught.value)


def test_a_missing_field_without_a_default_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        unpacked(Structure, {"kind": "grammar"})


def test_values_without_a_meaning_are_refused_by_the_dataclass() -> None:
    with pytest.raises(UsageError):
        unpacked(SampleOptions, {"temperature": -1.0})
