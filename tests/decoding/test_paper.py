"""Published CAPT, worked by hand: s(t) = logp_T(t) + logp_E(m(t)) - logp_A(m(t))."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.baselines import Choices, PaperCapt, log_softmax
from tests.published_toys import best, lettered, spaced, token_logp

# The pair that was published: a byte-level target, SentencePiece proxies of one vocabulary.
TARGET = lettered("card", "iac", " the", "/n")
PROXY = spaced(" ", " the", "card", " i", "ac", " /", " <")
EXPERT = PROXY.row({"card": 0.4, " the": 0.2, " i": 0.1, " /": 0.1, " <": 0.02})
BASE = PROXY.row({"card": 0.1, " the": 0.2, " i": 0.2, " /": 0.05, " <": 0.01}, offset=-7.0)


def method(k: int = 3, alpha: float = 1.0) -> PaperCapt:
    return PaperCapt(TARGET.strings, PROXY.strings, PROXY.strings, alpha, k)


def shares(made: Choices) -> dict[int, float]:
    return dict(zip(made.tokens.tolist(), np.exp(made.logp).tolist(), strict=True))


def test_generating_is_the_softmax_over_the_top_k() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25, " the": 0.125})
    made = method().generating(target, EXPERT, BASE)
    # card: 0.5 * 0.4 / 0.1 = 2. iac, scored as " i": 0.25 * 0.1 / 0.2 = 0.125.
    # the: 0.125 * 0.2 / 0.2 = 0.125. Together 2.25.
    card, iac, the = TARGET.id("card"), TARGET.id("iac"), TARGET.id(" the")
    assert made.tokens.tolist() == [card, iac, the]
    assert shares(made) == pytest.approx({card: 2 / 2.25, iac: 0.125 / 2.25, the: 0.125 / 2.25})
    assert best(made) == card
    assert token_logp(made, 1, -2.0) == -np.inf


def test_scoring_leaves_all_other_tokens_as_the_target_has_them() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25, " the": 0.125, "<|end|>": 0.1})
    made = method().scoring(target, EXPERT, BASE)
    # As above, and 0.125 that is not among the three: the sum is 2.25 + 0.125 = 2.375.
    wanted = {"card": 2.0, "iac": 0.125, " the": 0.125, "<|end|>": 0.1}
    own = log_softmax(target)
    for piece, share in wanted.items():
        token = TARGET.id(piece)
        assert token_logp(made, token, own[token]) == pytest.approx(np.log(share / 2.375), abs=1e-5)
    assert made.tokens.tolist() == sorted(made.tokens.tolist())


def test_alpha_weighs_the_contrast() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25, " the": 0.125})
    made = method(alpha=0.5).generating(target, EXPERT, BASE)
    # card: 0.5 * 4^0.5 = 1. iac: 0.25 * 0.5^0.5 = 0.17678. the: 0.125. Together 1.30178.
    assert np.exp(made.logp) == pytest.approx(np.array([1.0, 0.17678, 0.125]) / 1.30178, rel=1e-4)


def test_alpha_0_scores_as_the_target() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25})
    made = method(alpha=0.0).scoring(target, EXPERT, BASE)
    assert made.logp == pytest.approx(log_softmax(target)[made.tokens])
    assert made.outside == pytest.approx(0.0, abs=1e-12)


def test_a_newline_is_compared_as_a_slash() -> None:
    target = TARGET.row({"card": 0.6, "\n": 0.2})
    made = method(k=2).generating(target, EXPERT, BASE)
    # card: 0.6 * 4 = 2.4. newline, scored as " /": 0.2 * 0.1 / 0.05 = 0.4.
    assert np.exp(made.logp) == pytest.approx([2.4 / 2.8, 0.4 / 2.8], rel=1e-4)


def test_a_newline_is_lost_when_slash_n_is_among_the_candidates() -> None:
    """Both have the key "/n"; the less likely token takes the place of the other."""
    target = TARGET.row({"\n": 0.6, "card": 0.2, "/n": 0.1})
    made = method().generating(target, EXPERT, BASE)
    # "/n": 0.1 * 2 = 0.2, in the newline's place. card: 0.2 * 4 = 0.8.
    assert made.tokens.tolist() == [TARGET.id("/n"), TARGET.id("card")]
    assert np.exp(made.logp) == pytest.approx([0.2, 0.8], rel=1e-4)
    scored = method().scoring(target, EXPERT, BASE)
    newline = TARGET.id("\n")
    # The newline is outside: 0.2 + 0.8 and the other 0.7 of the target make 1.7.
    assert token_logp(scored, newline, np.log(0.6)) == pytest.approx(np.log(0.6 / 1.7), abs=1e-5)


def test_there_is_no_plausibility_limit() -> None:
    """A token at one in a million beats one at 0.99, because the base never met it."""
    target = TARGET.logits({"card": np.log(0.99), "iac": np.log(0.01), " the": np.log(1e-6)})
    expert = PROXY.row({"card": 0.1, " the": 0.5, " i": 0.1})
    base = PROXY.row({"card": 0.1, " the": 1e-8, " i": 0.1})
    # card: 0.99. " the": 1e-6 * 0.5 / 1e-8 = 50. iac: 0.01.
    made = method().generating(target, expert, base)
    assert best(made) == TARGET.id(" the")
    assert np.exp(made.logp) == pytest.approx([0.99 / 51, 0.01 / 51, 50 / 51], rel=1e-3)


def test_of_equals_the_likelier_token_of_the_target_comes() -> None:
    same = PROXY.logits({"card": 1.0, " the": 1.0, " i": 1.0})
    target = TARGET.logits({" the": 2.0, "card": 2.0, "iac": 1.0})
    made = method().generating(target, same, same)
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id(" the"), TARGET.id("iac")]
    assert best(made) == TARGET.id("card")


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(-2, 2))
def test_all_forms_are_normalised(seed: int, k: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        (rng.normal(size=len(toy.vocabulary)) * 4).astype(np.float32)
        for toy in (TARGET, PROXY, PROXY)
    ]
    assert np.exp(method(k, alpha).generating(*rows).logp).sum() == pytest.approx(1.0)
    own = log_softmax(rows[0])
    made = method(k, alpha).scoring(*rows)
    total = sum(np.exp(token_logp(made, token, own[token])) for token in range(len(own)))
    assert total == pytest.approx(1.0)
