"""Whatever drafts and gate do, the answer is the one that comes step by step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.options import (
    CombineOptions,
    GenerateOptions,
    Method,
    SampleOptions,
    Structure,
)
from capt_local.prompting.build import find_markers
from capt_local.prompting.messages import Prompt, Segment
from capt_local.prompting.template import ChatTemplate
from tests.decoding.answers import Habit, at_every_speed, lettered
from tests.decoding.test_reasoning import IDS, SAID, VOCABULARY, Speaker
from tests.decoding.test_structured import Texts
from tests.decoding.trios import PROXY
from tests.fakes import FakeModel, make_vocabulary, text_tokenizer

WORDS = st.lists(
    st.text(alphabet="abc ", min_size=2, max_size=4), min_size=2, max_size=12, unique=True
)
SEEDS = st.integers(0, 10**6)
ALPHAS = st.sampled_from([(), (0.0,), (0.3,), (1.0,)])
PLAUSIBLE = st.sampled_from([1e-5, 1e-2, 0.3, 1.0])
SAMPLES = st.sampled_from(
    [
        SampleOptions(),
        SampleOptions(repeat_penalty=1.3, repeat_window=8),
        SampleOptions(temperature=1.0, seed=4),
        SampleOptions(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=11),
    ]
)


def pair(
    target: list[str], proxy: list[str], seed: int, pairs: int = 1, **kinds: object
) -> Mapping[str, FakeModel]:
    """A target and its pairs of expert and base, all made anew."""
    own, other = lettered(target), lettered(proxy)
    models = {"target": Habit(own, seed, **kinds)}
    for place in range(pairs):
        end = f"-{place + 1}" if place else ""
        models[f"expert{end}"] = Habit(other, seed + 10 * place + 1, **kinds)
        models[f"base{end}"] = Habit(other, seed + 10 * place + 2, **kinds)
    return models


@settings(max_examples=30, deadline=None)
@given(WORDS, WORDS, SEEDS, ALPHAS, PLAUSIBLE, SAMPLES, st.data())
def test_answers_are_the_same_token_by_token(
    target: list[str],
    proxy: list[str],
    seed: int,
    alphas: tuple[float, ...],
    plausibility: float,
    sample: SampleOptions,
    data: st.DataObject,
) -> None:
    options = GenerateOptions(
        max_tokens=data.draw(st.sampled_from([1, 2, 7, 30])),
        stop=data.draw(st.sampled_from([(), ("ab",), ("c a", "bbb")])),
        top=data.draw(st.sampled_from([0, 0, 3])),
        combine=CombineOptions(alphas=alphas, plausibility=plausibility),
        sample=sample,
    )
    kinds = {
        "sure": data.draw(st.sampled_from([0.0, 0.4, 0.9])),
        "end_logit": data.draw(st.sampled_from([-30.0, 3.0])),
        "max_rows": data.draw(st.sampled_from([4, 16])),
        "memory": data.draw(st.sampled_from([1, 2, 3])),
    }
    pairs = data.draw(st.sampled_from([1, 1, 2]))
    text = data.draw(st.sampled_from([b"", b"abc ab", b"ab cab cab ab cab c"]))
    found = at_every_speed(lambda: pair(target, proxy, seed, pairs, **kinds), options, text)
    assert not options.top or not any(
        told.generation.stats.proxies_skipped for told in found.values()
    )


SOME = ["ab", "bc", "ca", " ab", "abc", "cab ", "b c"]
OTHERS = ["ac", "ba", "cc", " b", "aab", "bc a"]


def test_all_of_this_happens() -> None:
    """The tests here would pass if nothing was ever drafted, accepted or left out."""
    options = GenerateOptions(
        max_tokens=60, combine=CombineOptions(alphas=(0.5,), plausibility=1e-3)
    )
    found = {speed: np.zeros(3, int) for speed in ("exact", "auto", "eager")}
    for seed in range(5):
        answers = at_every_speed(lambda seed=seed: pair(SOME, OTHERS, seed), options)
        for speed, told in answers.items():
            draft_stats = told.generation.stats
            found[speed] += draft_stats.proxies_skipped, draft_stats.drafted, draft_stats.accepted
    assert not found.pop("exact").any()
    for gated, drafted, accepted in found.values():
        assert gated > 50 and drafted >= accepted > 15


@pytest.mark.parametrize("method", [each for each in Method if each is not Method.CAPT])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_method_gives_the_same_answer(method: Method, temperature: float) -> None:
    options = GenerateOptions(
        method=method, max_tokens=40, sample=SampleOptions(temperature=temperature, seed=2)
    )
    for seed in range(3):  # one vocabulary, as some of them need
        found = at_every_speed(lambda seed=seed: pair(SOME, SOME, seed), options)
        assert found["auto"].generation.stats.drafted


@pytest.mark.parametrize("text", [b"", b"ab"])
def test_the_space_in_front_of_an_answer_is_taken_off_drafts_as_well(text: bytes) -> None:
    for seed in range(6):

        def models(seed: int = seed) -> Mapping[str, FakeModel]:
            own = Habit(make_vocabulary(SOME), seed, leading_space=b" ")
            # Its first token is one with a space, which is the tokenizer's own.
            own._rows[tuple([*TURN(own, text)][-2:])] = spaced(own)
            other = lettered(OTHERS)
            return {"target": own, "expert": Habit(other, 5), "base": Habit(other, 6)}

        found = at_every_speed(models, GenerateOptions(max_tokens=20), text, leading_space=b" ")
        steps = found["eager"].steps
        assert steps[0].piece_bytes == b"ab" and steps[0].target_choice.piece_bytes == b" ab"


def TURN(model: FakeModel, text: bytes) -> list[int]:
    return [0, *text_tokenizer(model).encode(text, start=True)]


def spaced(model: FakeModel) -> np.ndarray:
    row = np.zeros(len(model.vocabulary), np.float32)
    row[model.tokenize(b"ab", special=False)[0]] = 40
    return row


@pytest.mark.parametrize("limit", range(40, 120, 20))
def test_a_draft_that_a_small_context_of_a_proxy_cannot_hold_ends_no_answer(limit: int) -> None:
    """A token of the target takes twelve of the proxy, so the draft is longer there."""
    options = GenerateOptions(
        max_tokens=60, combine=CombineOptions(alphas=(0.1,), plausibility=0.1)
    )

    def models(seed: int) -> Mapping[str, FakeModel]:
        own = lettered(["abcabcabcabc", "bca bca bca", "ca", "ab", " ab", "cccccccccc"])
        small = lettered(["ab"])
        kinds = {"max_rows": 16, "sure": 0.9, "memory": 1}
        return {
            "target": Habit(own, seed, **kinds),
            "expert": Habit(small, seed + 1, limit=limit, **kinds),
            "base": Habit(small, seed + 2, limit=limit, **kinds),
        }

    drafted = 0
    for seed in range(8):
        found = at_every_speed(lambda seed=seed: models(seed), options, b"ab ca")
        drafted += found["auto"].generation.stats.drafted
    assert drafted


# Drafts beside what else decides an answer: a form, thoughts.

FORM = [b"abcabcabcabcab", b"abc cab ab cab ab ca", b"bcaabcabc"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("plausibility", [1e-5, 0.3])
def test_structured_answers(
    temperature: float, plausibility: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "capt_local.decoding.loop.SchemaConstraint", lambda own, *_: Texts(own, FORM)
    )
    options = GenerateOptions(
        max_tokens=25,
        structure=Structure("{}"),
        combine=CombineOptions(alphas=(0.5,), plausibility=plausibility),
        sample=SampleOptions(temperature=temperature, seed=3),
    )
    drafted = 0
    for seed in range(3):

        def models(seed: int = seed) -> Mapping[str, FakeModel]:
            return pair(SOME, OTHERS, seed, max_rows=16)

        found = at_every_speed(models, options)
        for told in found.values():
            assert told.generation.text_bytes in FORM and told.generation.structured
            drafted += told.generation.stats.drafted
    assert drafted


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_thoughts(opened: bool, everywhere: bool) -> None:
    """Reasoning is the target's alone; drafts before and behind do not mix the two up."""
    said = [*SAID[:2], *[b"hm"] * 6, *SAID[2:-2], *[b"!", b"Yes"] * 4, b"<end>"]
    said = said[1:] if opened else said
    tokens = [IDS[b"<s>"], *([IDS[b"<think>"]] if opened else [])]

    def thinking() -> Mapping[str, FakeModel]:
        front = [0, *made.tokenize(b"ab", special=False), *tokens]
        return {
            "target": Speaker(said, len(front)),
            "expert": FakeModel(PROXY, 2),
            "base": FakeModel(PROXY, 3),
        }

    made = FakeModel(VOCABULARY, 1)

    def edit(prompts: dict[str, Prompt]) -> dict[str, Prompt]:
        target = prompts["target"]
        markers = find_markers(VOCABULARY, ChatTemplate(""))
        segments = (*target.segments, Segment(tuple(tokens)))
        prompts["target"] = Prompt(segments, markers=markers)
        return prompts

    options = GenerateOptions(max_tokens=40, expert_in_thoughts=everywhere)
    found = at_every_speed(thinking, options, b"ab", edit=edit)
    for speed, told in found.items():
        assert told.generation.thoughts_bytes == b"hm" * 7 + b" card"
        assert told.generation.text_bytes == b"Yes" + b"!Yes" * 4
        if speed == "eager":
            assert told.generation.stats.accepted
