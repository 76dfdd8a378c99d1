"""The published methods, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.baselines import (
    Choices,
    contrastive,
    log_softmax,
    paper_capt,
    proxy_tuning,
    top,
    unite,
)
from capt_local.decoding.ensemble import Ensemble, prompt_for_role
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.prompting.messages import Message
from tests.decoding.trios import PROXY as PROXY_WORDS
from tests.decoding.trios import TARGET as TARGET_WORDS
from tests.decoding.trios import assembly, turn
from tests.fakes import FakeModel, softmax
from tests.published_toys import lettered, spaced, token_logp

# Contrastive decoding and proxy tuning.


def logits(*shares: float, offset: float = 5.0) -> np.ndarray:
    return (np.log(shares) + offset).astype(np.float32)


def test_contrastive_decoding_by_hand() -> None:
    expert = logits(0.60, 0.30, 0.05, 0.05)
    made = contrastive(expert, logits(0.30, 0.60, 0.01, 0.09, offset=-2.0))
    # At least 0.1 * 0.6: the first two. Their ratio is (0.6 / 0.3)^1.5 / (0.3 / 0.6)^0.5 = 4,
    # so that they have 0.8 and 0.2. The third, five times likelier than for the base, has nothing.
    assert made.tokens.tolist() == [0, 1]
    assert np.exp(made.logp) == pytest.approx([0.8, 0.2], rel=1e-5)
    assert token_logp(made, 2, np.log(0.05)) == -np.inf
    # For scoring the plausible ones share 0.9.
    own, scored = log_softmax(expert), made.sharing(expert)
    got = [np.exp(token_logp(scored, token, own[token])) for token in range(4)]
    assert got == pytest.approx([0.72, 0.18, 0.05, 0.05], rel=1e-5)


def test_the_limit_itself_is_plausible() -> None:
    """p >= alpha * max p, not p > alpha * max p."""
    row = np.log(np.array([0.8, 0.2], np.float32))
    assert contrastive(row, row, plausibility=0.25).tokens.tolist() == [0, 1]
    assert contrastive(row, row, plausibility=0.26).tokens.tolist() == [0]


def test_proxy_tuning_by_hand() -> None:
    made = proxy_tuning(
        logits(0.5, 0.25, 0.25), logits(0.6, 0.2, 0.2, offset=1.0), logits(0.3, 0.2, 0.5)
    )
    # 0.5 * 0.6 / 0.3 = 1; 0.25 * 0.2 / 0.2 = 0.25; 0.25 * 0.2 / 0.5 = 0.1. Together 1.35.
    assert np.exp(made.logp) == pytest.approx(np.array([1.0, 0.25, 0.1]) / 1.35, rel=1e-5)
    assert made.tokens.tolist() == [0, 1, 2]


# Published CAPT: s(t) = logp_T(t) + logp_E(m(t)) - logp_A(m(t)). The pair that was published: a
# byte-level target, SentencePiece proxies of one vocabulary.

TARGET = lettered("card", "iac", " the", "/n")
PROXY = spaced(" ", " the", "card", " i", "ac", " /", " <")
EXPERT = PROXY.row({"card": 0.4, " the": 0.2, " i": 0.1, " /": 0.1, " <": 0.02})
BASE = PROXY.row({"card": 0.1, " the": 0.2, " i": 0.2, " /": 0.05, " <": 0.01}, offset=-7.0)


def paper(target: np.ndarray, *, alpha: float = 1.0, scoring: bool = False) -> Choices:
    strings = (TARGET.strings, PROXY.strings, PROXY.strings)
    return paper_capt(strings, target, EXPERT, BASE, alpha, k=3, scoring=scoring)


def test_generating_is_the_softmax_over_the_top_k() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25, " the": 0.125})
    made = paper(target)
    # card: 0.5 * 0.4 / 0.1 = 2. iac, scored as " i": 0.25 * 0.1 / 0.2 = 0.125.
    # the: 0.125 * 0.2 / 0.2 = 0.125. Together 2.25.
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id("iac"), TARGET.id(" the")]
    assert np.exp(made.logp) == pytest.approx([2 / 2.25, 0.125 / 2.25, 0.125 / 2.25])
    assert token_logp(made, 1, -2.0) == -np.inf
    made = paper(target, alpha=0.5)
    # card: 0.5 * 4^0.5 = 1. iac: 0.25 * 0.5^0.5 = 0.17678. the: 0.125. Together 1.30178.
    assert np.exp(made.logp) == pytest.approx(np.array([1.0, 0.17678, 0.125]) / 1.30178, rel=1e-4)


def test_scoring_leaves_all_other_tokens_as_the_target_has_them() -> None:
    target = TARGET.row({"card": 0.5, "iac": 0.25, " the": 0.125, "<|end|>": 0.1})
    made = paper(target, scoring=True)
    # As above, and 0.125 that is not among the three: the sum is 2.25 + 0.125 = 2.375.
    own = log_softmax(target)
    for piece, share in {"card": 2.0, "iac": 0.125, " the": 0.125, "<|end|>": 0.1}.items():
        token = TARGET.id(piece)
        assert token_logp(made, token, own[token]) == pytest.approx(np.log(share / 2.375), abs=1e-5)
    made = paper(target, alpha=0.0, scoring=True)
    assert made.logp == pytest.approx(log_softmax(target)[made.tokens])
    assert made.outside == pytest.approx(0.0, abs=1e-12)


def test_a_newline_is_lost_when_slash_n_is_among_the_candidates() -> None:
    """Both have the key "/n"; the less likely token takes the place of the other."""
    target = TARGET.row({"\n": 0.6, "card": 0.2, "/n": 0.1})
    made = paper(target)
    # "/n": 0.1 * 2 = 0.2, in the newline's place. card: 0.2 * 4 = 0.8.
    assert made.tokens.tolist() == [TARGET.id("/n"), TARGET.id("card")]
    assert np.exp(made.logp) == pytest.approx([0.2, 0.8], rel=1e-4)
    scored = paper(target, scoring=True)
    # The newline is outside: 0.2 + 0.8 and the other 0.7 of the target make 1.7.
    found = token_logp(scored, TARGET.id("\n"), np.log(0.6))
    assert found == pytest.approx(np.log(0.6 / 1.7), abs=1e-5)


def test_there_is_no_plausibility_limit() -> None:
    target = TARGET.logits({"card": np.log(0.99), "iac": np.log(0.01), " the": np.log(1e-6)})
    made = paper(target)
    # card: 0.99 * 4. iac: 0.01 * 0.5. the: 1e-6.
    assert np.exp(made.logp) == pytest.approx(np.array([3.96, 0.005, 1e-6]) / 3.965, rel=1e-3)


# UniTE: union of both top k, a softmax each, the mean.

OTHER = spaced(" ", " the", "card", " i", "ac", " therapy", " thesis")
C4 = 2 + 0xC4


STRINGS = (TARGET.strings, OTHER.strings)


def test_the_mean_over_the_union() -> None:
    target = TARGET.logits({"card": 3.0, "iac": 2.0, " the": 1.0, "x": 1.5})
    expert = OTHER.logits({" the": 4.0, "card": 1.0, " i": 0.0, "y": 0.5})
    made = unite(STRINGS, target, expert, 2)
    # Union: card, iac (the target's two), " the" (new among the expert's two).
    # Target: softmax(3, 2, 1) = 0.66524, 0.24473, 0.09003.
    # Expert: iac has no piece and gets " i": softmax(1, 0, 4) = 0.04661, 0.01715, 0.93624.
    wanted = [(0.66524 + 0.04661) / 2, (0.24473 + 0.01715) / 2, (0.09003 + 0.93624) / 2]
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id("iac"), TARGET.id(" the")]
    assert np.exp(made.logp) == pytest.approx(wanted, abs=2e-5)


def test_scoring_shares_what_the_target_gives_to_the_union() -> None:
    target = TARGET.row({"card": 0.4, "iac": 0.2, " the": 0.1, "x": 0.15})
    expert = OTHER.row({" the": 0.6, "card": 0.2, " i": 0.1})
    made = unite(STRINGS, target, expert, 2, scoring=True)
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


def test_a_second_string_with_the_same_first_sub_token_gets_the_logit_0() -> None:
    """ "Ġtherapy" is split as text: "Ġ" is C4 A0, and its first byte is emitted."""
    target = TARGET.logits({"card": 5.0, "iac": 4.0})
    target[C4] = 3.0
    expert = OTHER.logits({" therapy": 9.0, " thesis": 8.0, "card": 1.0, " i": 2.0})
    made = unite(STRINGS, target, expert, 2)
    # The target has "Ġtherapy" and "Ġthesis" as the byte C4: the first gets 3, the second 0.
    first, second = np.exp([5.0, 4.0, 3.0, 0.0]), np.exp([1.0, 2.0, 9.0, 8.0])
    wanted = (first / first.sum() + second / second.sum()) / 2
    assert made.tokens.tolist() == [TARGET.id("card"), TARGET.id("iac"), C4, C4]
    assert np.exp(made.logp) == pytest.approx(wanted, rel=1e-5)
    merged = made.merged()
    assert merged.tokens.tolist() == [C4, TARGET.id("card"), TARGET.id("iac")]
    assert np.exp(merged.logp[0]) == pytest.approx(wanted[2] + wanted[3], rel=1e-5)


def test_a_sentencepiece_target_repeats_the_logit_instead() -> None:
    """With the roles changed " therapy" and " thesis" both have the value of " the"."""
    target = spaced(" ", " the", "card")
    expert = lettered(" therapy", " thesis", "card")
    made = unite(
        (target.strings, expert.strings),
        target.logits({"card": 2.0, " ": 1.0, " the": 0.5}),
        expert.logits({" therapy": 3.0, " thesis": 2.0, "card": 0.0, " ": 1.0}),
        2,
    )
    # Target, of card, space and twice " the": softmax(2, 1, 0.5, 0.5).
    # Expert: card, its own byte for the space, therapy, thesis: softmax(0, 1, 3, 2).
    first, second = np.exp([2.0, 1.0, 0.5, 0.5]), np.exp([0.0, 1.0, 3.0, 2.0])
    the = target.id(" the")
    assert made.tokens.tolist() == [target.id("card"), target.id(" "), the, the]
    assert np.exp(made.logp) == pytest.approx(
        (first / first.sum() + second / second.sum()) / 2, rel=1e-5
    )


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0]), min_size=1), st.integers(1, 9))
def test_top_is_the_beginning_of_a_stable_sort(values: list[float], count: int) -> None:
    wanted = sorted(range(len(values)), key=lambda token: (-values[token], token))
    assert top(np.array(values, np.float32), count) == wanted[:count]


# SAFE.

PAIR = {"target": FakeModel(TARGET_WORDS, 1), "expert": FakeModel(PROXY_WORDS, 2)}


def built(method: Method, **models: FakeModel) -> Ensemble:
    """Without a base among the models: nothing of these methods needs one."""
    return assembly({**PAIR, **models}).build(GenerateOptions(method=method), scoring=True)


def test_safe_leaves_the_target_alone_where_models_agree() -> None:
    ensemble = built(Method.SAFE, expert=FakeModel(TARGET_WORDS, 1))  # the same model
    ensemble.start(turn(ensemble))
    for _ in range(6):
        row = softmax(PAIR["target"].logits(ensemble.tokens))
        here, token = ensemble.distribution(), int(row.argmax())
        assert here.token_logp(token) == pytest.approx(np.log(row[token]), rel=1e-4)
        ensemble.advance(token)


def test_safe_ensembles_some_positions_and_is_unite_there() -> None:
    safe, mean = built(Method.SAFE), built(Method.UNITE)
    for each in (safe, mean):
        each.start(turn(each, b"abc the card abc a"))
    kinds = set()
    for token in [TARGET_WORDS.byte_ids[byte] for byte in b"cab dac abc"]:
        alone = np.log(softmax(PAIR["target"].logits(safe.tokens))[token])
        found = [each.distribution().token_logp(token) for each in (safe, mean)]
        assert found[0] == pytest.approx(alone, rel=1e-4) or found[0] == found[1]
        kinds.add("alone" if found[0] == pytest.approx(alone, rel=1e-4) else "unite")
        for each in (safe, mean):
            each.advance(token)
    assert kinds == {"alone", "unite"}


def test_a_boundary_inside_a_piece_of_the_expert_is_left_alone() -> None:
    """ "ab" + "c" is the piece "abc" of the expert: its token "ab" does not stay."""
    safe = built(Method.SAFE)
    safe.start(turn(safe, b"card"))
    (expert,) = safe.proxies
    for byte in b"xca":
        safe.advance(TARGET_WORDS.byte_ids[byte])
    assert not expert.keeps_tokens(b"r") and expert.keeps_tokens(b"\n\n")


def test_proxies_of_the_published_prompts_read_the_raw_text() -> None:
    asked = [Message("system", "Be short."), Message("user", "Why?")]
    raw = Method.CAPT_PAPER_RAW
    assert prompt_for_role(raw, "target", asked, raw=False) == (asked, False)
    assert prompt_for_role(raw, "expert", asked, raw=False) == ("Be short.\n\nWhy?", True)
    assert prompt_for_role(Method.CAPT_PAPER, "expert", asked, raw=False) == (asked, False)
