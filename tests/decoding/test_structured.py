"""Constrained answers: they have their form, and are the method's choice among what it allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.combine import Distribution, as_candidates
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, GenerateOptions, SampleOptions
from capt_local.decoding.prompt_weights import prefill
from capt_local.decoding.sampling import choose
from capt_local.decoding.step import FinishReason
from capt_local.decoding.structured import masked
from capt_local.errors import ModelError
from capt_local.tokenization.vocabulary import Vocabulary
from tests.decoding.trios import TARGET, toy, turn, walk
from tests.fakes import make_vocabulary

GREEDY = GenerateOptions(max_tokens=12)
DRAWN = SampleOptions(temperature=1.0, top_p=0.9, seed=5)


class Texts:
    """Allows the beginnings of some texts."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[bytes]) -> None:
        self.texts, self.done = texts, b""
        self._vocabulary = vocabulary

    @property
    def complete(self) -> bool:
        return self.done in self.texts

    def allowed(self) -> np.ndarray:
        return np.array([self._may(token) for token in range(len(self._vocabulary))], np.bool_)

    def accept(self, token: int) -> None:
        assert self._may(token) and not self._vocabulary.is_end[token]
        self.done += self._vocabulary.piece(token)

    def _may(self, token: int) -> bool:
        if self._vocabulary.is_end[token]:
            return self.complete
        after = self.done + self._vocabulary.piece(token)
        text = bool(self._vocabulary.is_text[token])
        return text and any(each.startswith(after) for each in self.texts)


def started(options: CombineOptions | None = None) -> Ensemble:
    trio = toy(options)
    prompts = turn(trio)
    trio.start(prompts)
    prefill(trio, prompts)
    return trio


def walked(
    trio: Ensemble, texts: Sequence[bytes], options: GenerateOptions = GREEDY
) -> tuple[bytes, Generation, list]:
    made = walk(trio, options, constraint=Texts(TARGET, texts))
    steps = list(made)
    return b"".join(step.piece_bytes for step in steps), made, steps


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([b"cardiac", b"card", b"abc the", b"\n\nab", "é!".encode()]),
             min_size=1, max_size=4, unique=True),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([1e-5, 0.1, 1.0]),
)  # fmt: skip
def test_an_answer_is_one_of_the_texts(
    texts: list[bytes], temperature: float, plausibility: float
) -> None:
    combine = CombineOptions(plausibility=plausibility)
    options = GenerateOptions(max_tokens=12, sample=SampleOptions(temperature=temperature))
    said, made, steps = walked(started(combine), texts, options)
    assert said in texts
    assert (made.finish, made.structured) == (FinishReason.STOP, True)
    assert all(np.isfinite([step.logp, step.target_logp]).all() for step in steps)


def test_a_form_that_allows_everything_changes_nothing() -> None:
    class Everything(Texts):
        def _may(self, token: int) -> bool:
            return True

        def accept(self, token: int) -> None:
            pass

    for sample in (SampleOptions(), DRAWN):
        options = GenerateOptions(max_tokens=8, sample=sample, top=3)
        found = []
        for constraint in (None, Everything(TARGET, ())):
            found.append(list(walk(started(), options, constraint=constraint)))
        assert found[0] == found[1]


def test_draws_are_of_the_distribution_over_what_is_allowed() -> None:
    texts = [b"c", b"a", b"t"]
    trio = started()
    here = trio.distribution()
    tokens = [TARGET.byte_ids[text[0]] for text in texts]
    wanted = np.exp([here.token_logp(token) for token in tokens])
    wanted /= wanted.sum()
    found: Counter[bytes] = Counter()
    for seed in range(400):
        options = GenerateOptions(max_tokens=1, sample=SampleOptions(temperature=1.0, seed=seed))
        (step,) = walk(started(), options, constraint=Texts(TARGET, texts))
        found[step.piece_bytes] += 1
        assert step.logp == pytest.approx(here.token_logp(step.token))
    shares = [found[text] / 400 for text in texts]
    np.testing.assert_allclose(shares, wanted, atol=0.08)


def test_where_nothing_plausible_is_allowed_the_contrast_decides_among_what_is() -> None:
    combine = CombineOptions(alphas=(1.0,), plausibility=1.0)
    free = started(combine).distribution()
    refused = set(free.candidates.tokens.tolist())
    texts = [bytes([byte]) for byte in b"xyzq" if TARGET.byte_ids[byte] not in refused]
    said, made, steps = walked(started(combine), texts)
    assert said in texts and made._implausible_steps == 1
    # The target's own log-probability is that of its whole distribution.
    row = free.row[steps[0].token] - free.candidates.log_total
    assert steps[0].target_logp == pytest.approx(float(row))
    assert steps[0].target_choice.piece_bytes in texts


def test_a_form_that_no_token_can_go_on_is_an_error() -> None:
    class Nothing(Texts):
        def _may(self, token: int) -> bool:
            return False

    with pytest.raises(ModelError, match="has no token for what the schema"):
        list(walk(started(), GREEDY, constraint=Nothing(TARGET, ())))


def test_an_answer_that_ends_early_is_not_complete() -> None:
    _, made, _ = walked(started(), [b"cardiac" * 3], GenerateOptions(max_tokens=2))
    assert (made.finish, made.structured) == (FinishReason.LENGTH, False)
    made = walk(started(), GREEDY, cancel=lambda: True, constraint=Texts(TARGET, [b"a"]))
    assert list(made) == []
    assert (made.finish, made.structured) == (FinishReason.INTERRUPTED, False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_of_probability_0_is_never_chosen(temperature: float) -> None:
    """A published method may give 0 to all that is allowed; then the leading model decides."""

    vocabulary = make_vocabulary(list("abc"), all_bytes=False)
    row = np.array([-9.0, -9.0, 1.0, 2.0, 0.5], np.float32)
    tokens = np.array([2, 3, 4], np.int32)
    own = as_candidates(row, tokens)
    nothing = np.array([0.0, -np.inf, -np.inf])

    def distribution(only: Any = None, *, alone: bool = False) -> Distribution:
        logp = own.logp if alone else nothing
        return Distribution(own, np.zeros(3), logp, row, logp[None], np.empty((0, 3)))

    options = SampleOptions(temperature=temperature)
    made = masked(distribution(), np.arange(len(vocabulary)) == 4, distribution)
    logp, draws = made.here.logp, np.random.default_rng(1)
    place = choose(made.here.candidates.tokens, logp, (), options, draws, made.mask)
    assert int(tokens[place]) == 4 and np.isfinite(logp[place])
