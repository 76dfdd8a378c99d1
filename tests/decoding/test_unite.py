"""UniTE worked by hand: union of both top k, a softmax each, the mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.baselines import Unite, log_softmax, top
from tests.published_toys import best, lettered, spaced, token_logp

TARGET = lettered("card", "iac", " the")
EXPERT = spaced(" ", " the", "card", " i", "ac", " therapy", " thesis")


def method(k: int = 2) -> Unite:
    return Unite(TARGET.strings, EXPERT.strings, k)


def test_the_mean_over_the_union() -> None:
    target = TARGET.logits({"card": 3.0, "iac": 2.0, " the": 1.0, "x": 1.5})
    expert = EXPERT.logits({" the": 4.0, "card": 1.0, " i": 0.0, "y": 0.5})
    made = method().generating(target, expert)
    # Union: card, iac (the target's two), " the" (new among the expert's two).
    # Target: softmax(3, 2, 1) = 0.66524, 0.24473, 0.09003.
    # Expert: iac has no piece and gets " i": softmax(1, 0, 4) = 0.04661, 0.01715, 0.93624.
    wanted = [(0.66524 + 0.04661) / 2, (0.24473 + 0.01715) / 2, (0.09003 + 0.93624) / 2]
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id("iac"), TARGET.id(" the")]
    assert np.exp(made.logp) == pytest.approx(wanted, abs=2e-5)
    assert best(made) == TARGET.id(" the")
    assert token_logp(made, TARGET.id("x"), -1.0) == -np.inf


def test_scoring_shares_what_the_target_gives_to_the_union() -> None:
    target = TARGET.row({"card": 0.4, "iac": 0.2, " the": 0.1, "x": 0.15})
    expert = EXPERT.row({" the": 0.6, "card": 0.2, " i": 0.1})
    made = method().scoring(target, expert)
    # The union has 0.4 + 0.2 + 0.1 = 0.7 of the target.
    # Target: 4/7, 2/7, 1/7. Expert, of 0.2, 0.1, 0.6: 2/9, 1/9, 6/9.
    wanted = {
        "card": 0.7 * (4 / 7 + 2 / 9) / 2,
        "iac": 0.7 * (2 / 7 + 1 / 9) / 2,
        " the": 0.7 * (1 / 7 + 6 / 9) / 2,
        "x": 0.15,
    }
    own = log_softmax(target)
    for piece, share in wanted.items():
        token = TARGET.id(piece)
        assert token_logp(made, token, own[token]) == pytest.approx(np.log(share), abs=1e-5)


def test_a_word_that_the_target_lacks_emits_the_letter_of_its_space() -> None:
    """The string "Ġtherapy" is split as text: "Ġ" is C4 A0, and its first byte is emitted."""
    target = TARGET.logits({"card": 0.0, "iac": -1.0})
    expert = EXPERT.logits({" therapy": 9.0, "card": 0.0})
    assert best(method().generating(target, expert)) == 2 + 0xC4


def test_a_second_string_with_the_same_first_sub_token_gets_the_logit_0() -> None:
    target = TARGET.logits({"card": 5.0, "iac": 4.0})
    target[2 + 0xC4] = 3.0
    expert = EXPERT.logits({" therapy": 9.0, " thesis": 8.0, "card": 1.0, " i": 2.0})
    made = method().generating(target, expert)
    # The target has "Ġtherapy" and "Ġthesis" as the byte C4: the first gets 3, the second 0.
    first = np.exp([5.0, 4.0, 3.0, 0.0])
    second = np.exp([1.0, 2.0, 9.0, 8.0])
    wanted = (first / first.sum() + second / second.sum()) / 2
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id("iac"), 2 + 0xC4, 2 + 0xC4]
    assert np.exp(made.logp) == pytest.approx(wanted, rel=1e-5)
    merged = made.merged()
    assert merged.tokens.tolist() == [2 + 0xC4, TARGET.id("card"), TARGET.id("iac")]
    assert np.exp(merged.logp[0]) == pytest.approx(wanted[2] + wanted[3], rel=1e-5)
    assert token_logp(made, 2 + 0xC4, -9.0) == pytest.approx(merged.logp[0])


def test_strings_are_compared_one_by_one_not_by_the_token_that_they_emit() -> None:
    target = TARGET.logits({"card": 1.0, "iac": 0.6})
    target[2 + 0xC4] = 0.5
    expert = EXPERT.logits({" therapy": 5.0, " thesis": 5.0, "card": 4.9})
    made = method().generating(target, expert)
    # card: (0.378 + 0.311) / 2 = 0.345. therapy: (0.229 + 0.345) / 2 = 0.287. thesis:
    # (0.139 + 0.345) / 2 = 0.242. The two emit one token, which would have 0.529.
    assert best(made) == TARGET.id("card")
    assert best(made.merged()) == 2 + 0xC4
    assert np.exp(made.merged().logp.max()) == pytest.approx(0.529, abs=1e-3)


def test_a_sentencepiece_target_repeats_the_logit_instead() -> None:
    """With the roles changed " therapy" and " thesis" both have the value of " the"."""
    target = spaced(" ", " the", "card")
    expert = lettered(" therapy", " thesis", "card")
    made = Unite(target.strings, expert.strings, 2).generating(
        target.logits({"card": 2.0, " ": 1.0, " the": 0.5}),
        expert.logits({" therapy": 3.0, " thesis": 2.0, "card": 0.0, " ": 1.0}),
    )
    # Target, of card, space and twice " the": softmax(2, 1, 0.5, 0.5).
    # Expert: card, its own byte for the space, therapy, thesis: softmax(0, 1, 3, 2).
    first, second = np.exp([2.0, 1.0, 0.5, 0.5]), np.exp([0.0, 1.0, 3.0, 2.0])
    wanted = (first / first.sum() + second / second.sum()) / 2
    the = target.id(" the")
    assert made.tokens.tolist() == [target.id("card"), target.id(" "), the, the]
    assert np.exp(made.logp) == pytest.approx(wanted, rel=1e-5)


def test_one_model_twice_is_that_model_within_its_top_k() -> None:
    row = TARGET.row({"card": 0.4, "iac": 0.2, " the": 0.1})
    made = Unite(TARGET.strings, TARGET.strings, 3).generating(row, row)
    assert np.exp(made.logp) == pytest.approx([4 / 7, 2 / 7, 1 / 7], rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_both_forms_are_normalised(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        (rng.normal(size=len(toy.vocabulary)) * 4).astype(np.float32) for toy in (TARGET, EXPERT)
    ]
    made = method(k).generating(*rows)
    assert np.exp(made.logp).sum() == pytest.approx(1.0)
    assert k <= len(made.tokens) <= 2 * k
    scored = method(k).scoring(*rows)
    own = log_softmax(rows[0])
    total = sum(np.exp(token_logp(scored, token, own[token])) for token in range(len(own)))
    assert total == pytest.approx(1.0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0]), min_size=1), st.integers(1, 9))
def test_top_is_the_beginning_of_a_stable_sort(values: list[float], count: int) -> None:
    wanted = sorted(range(len(values)), key=lambda token: (-values[token], token))
    assert top(np.array(values, np.float32), count) == wanted[:count]
