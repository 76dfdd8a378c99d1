from __future__ import annotations

import dataclasses

import pytest

from capt_local.chat.commands import SETTINGS, changed, differences, doubtful
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.errors import UsageError

START = GenerateOptions()
VALUES = {
    "alpha": "0.5",
    "weights": "0.75,1,0.75",
    "plausibility": "0.1",
    "method": "target",
    "max-tokens": "7",
    "temp": "0.7",
    "top-k": "40",
    "top-p": "0.9",
    "min-p": "0.05",
    "repeat-penalty": "1.1",
    "repeat-last-n": "32",
    "seed": "3",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_can_be_changed_and_back(setting) -> None:
    value, before = VALUES[setting.name], setting.of(START)
    new = changed(START, f"{setting.name} {value}")
    assert differences(START, new) == [(setting.name, before, value)]
    assert changed(new, f"{setting.name}={before}") == START


def test_all_parameters_of_the_sampling_can_be_set() -> None:
    fields = {field.name for field in dataclasses.fields(START.sample)}
    assert fields == {each.field for each in SETTINGS if each.group == "sample"}


def test_several_at_once_and_other_spellings() -> None:
    new = changed(START, "alpha=evidence temperature=0.5 n=9 METHOD=base")
    assert new.combine.mixes and new.sample.temperature == 0.5
    assert new.max_tokens == 9 and new.method is Method.BASE
    assert changed(START, "top_p 0.5").sample.top_p == 0.5


def test_alpha_and_weights_take_each_others_place() -> None:
    weighed = changed(START, "weights 0.75,1,0.75")
    assert weighed.combine.powers == (0.75, 1.0, 0.75)
    new = changed(weighed, "alpha 0.5")
    assert new.combine.alphas == (0.5,) and not new.combine.powers
    assert changed(new, "weights evidence").combine.mixes


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("alpha 9", "not between -8 and 8"),
        ("alpha nan", "not between"),
        ("plausibility -1", "not between 0 and 1"),
        ("temp -1", "not 0 or above"),
        ("max-tokens 0", "below 1"),
        ("top-p 0", "top-p"),
        ("seed -4", "negative"),
        ("seed 1.5", "a whole number"),
        ("alpha strong", "'evidence'"),
        ("weights 1,2", "takes A,B,C"),
        ("method magic", "one of"),
        ("alhpa 1", "nearest is alpha"),
        ("zzz 1", "Known: alpha"),
        ("alpha", "NAME VALUE"),
        ("alpha 1 2", "NAME VALUE"),
        ("", "NAME VALUE"),
    ],
)
def test_what_has_no_meaning_is_refused_as_for_the_flags(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        changed(START, typed)
    for word in ("strong", "magic", "alhpa", "zzz"):
        assert word not in str(caught.value)


def test_values_that_cannot_be_sensible_are_questioned() -> None:
    ours = GenerateOptions()
    assert doubtful(ours) is None
    for sensible in ("alpha=0.5", "alpha=evidence", "temp=1", "weights=0.5,0.5,0"):
        assert doubtful(changed(ours, sensible)) is None
    for odd in ("alpha=7", "alpha=-1", "temp=5", "weights=4,1,0", "plausibility=0.9"):
        assert doubtful(changed(ours, odd)) is not None
