"""Draws with drafts on are draws of the combined distribution, counted out on a toy vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from capt_local.decoding.options import CombineOptions, GenerateOptions, SampleOptions, Speed
from capt_local.decoding.speculate import setup
from tests.decoding.speculate.answers import Habit, Oracle, tell
from tests.decoding.trios import assembly, turn
from tests.fakes import FakeModel, make_vocabulary

VOCABULARY = make_vocabulary(["a", "b", "c"], all_bytes=False)
TOKENS = range(2, 5)
LENGTH, DRAWS = 3, 1500
COMBINE = CombineOptions(alphas=(0.7,))


def models() -> Mapping[str, FakeModel]:
    kinds = {"scale": 0.7, "sure": 0.0, "memory": 3, "end_logit": -60.0}
    made = {
        role: Habit(VOCABULARY, seed, **kinds)  # type: ignore[arg-type]
        for seed, role in enumerate(("target", "expert", "base"))
    }
    for model in made.values():  # nor does BOS come
        logits = model.logits
        model.logits = lambda tokens, logits=logits: logits(tokens) - FAR  # type: ignore
    return made


FAR = np.array([60.0, 0, 0, 0, 0], np.float32)


def enumerated() -> dict[tuple[int, ...], float]:
    """The probability of each answer, token by token, without anything that speeds up."""
    trio = assembly(models()).trio(GenerateOptions(combine=COMBINE))
    trio.configure(COMBINE)
    found = {}
    for answer in product(TOKENS, repeat=LENGTH):
        trio.start(turn(trio, b"ab"))
        logp = 0.0
        for token in answer:
            logp += trio.distribution().token_logp(token)
            trio.advance(token)
        found[answer] = float(np.exp(logp))
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)
    return found


def test_draws_with_drafts_follow_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = enumerated()
    likeliest = max(wanted, key=lambda answer: wanted[answer])
    oracle = Oracle(likeliest, lambda left, count: left[:count])
    monkeypatch.setattr(setup, "sources", lambda trio: [oracle])
    policy = setup.Policy
    monkeypatch.setattr(
        setup, "Policy", lambda costs, sources, **_: policy(costs, sources, always=True)
    )
    made = models()
    trio = assembly(made).trio(GenerateOptions(combine=COMBINE))
    seen: Counter[tuple[int, ...]] = Counter()
    drafted = accepted = 0
    for seed in range(DRAWS):
        sample = SampleOptions(temperature=1.0, seed=seed)
        options = GenerateOptions(
            max_tokens=LENGTH, combine=COMBINE, sample=sample, speed=Speed.AUTO
        )
        told = tell(made, options, b"ab", trio=trio)
        seen[tuple(step.token for step in told.steps)] += 1
        drafted += told.generation.tally.drafted
        accepted += told.generation.tally.accepted
    assert drafted > accepted > DRAWS / 10
    assert set(seen) <= set(wanted)
    expected = {answer: DRAWS * share for answer, share in wanted.items()}
    # Answers that hardly ever come are counted together.
    rare = [answer for answer, count in expected.items() if count < 5]
    cells = [([answer], count) for answer, count in expected.items() if count >= 5]
    if rare:
        cells.append((rare, sum(expected[answer] for answer in rare)))
    distance = sum((sum(seen[a] for a in group) - count) ** 2 / count for group, count in cells)
    assert len(cells) > 10
    assert distance < quantile(0.99, len(cells) - 1)


def quantile(share: float, degrees: int) -> float:
    """Of chi-square, by the cube root of it being nearly normal (Wilson and Hilferty 1931)."""
    part = 2 / (9 * degrees)
    cube: float = 1 - part + NormalDist().inv_cdf(share) * part**0.5
    return degrees * cube**3


def test_the_quantile_is_that_of_the_tables() -> None:
    for degrees, wanted in ((10, 23.209), (20, 37.566), (26, 45.642)):
        assert quantile(0.99, degrees) == pytest.approx(wanted, rel=2e-3)
