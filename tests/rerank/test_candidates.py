"""Best of n on the demo trio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Request, Runtime, SampleOptions
from capt_local.decoding.batching import RequestResult
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, Structure
from capt_local.documents import Document
from capt_local.errors import Cancelled
from capt_local.grounding import missing_from
from capt_local.rerank import RankedBy, best_of, draw_choices, ranked, shares
from tests.report.answers import step

QUESTION = "58-year-old woman with dyspnea on exertion for 3 days and a cough. What should be done?"
OPTIONS = GenerateOptions(max_tokens=6, sample=SampleOptions(temperature=1.0, seed=3))
NEAR = 2e-2  # nats


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1, context=512), check=False) as opened:
        yield opened


@pytest.mark.parametrize(
    ("combine", "raw"), [(CombineOptions(alphas=(0.5,)), True), (CombineOptions(), False)]
)
def test_the_prompt_is_read_once_and_each_candidate_is_as_one_alone(
    runtime: Runtime, combine: CombineOptions, raw: bool
) -> None:
    options = GenerateOptions(max_tokens=6, combine=combine, sample=OPTIONS.sample)
    before = runtime.decoded()
    found = best_of(runtime, QUESTION, options, 5, raw=raw)
    for role, prompt in found.candidates[0].generation.prompt_tokens.items():
        # The last 64 tokens once more for the evidence, and those that may change in a raw text.
        assert runtime.decoded()[role] - before[role] < prompt + 64 + 5 * 20, role
    assert found.ranked_by is RankedBy.MEAN_LOGP
    scores = [one.score for one in found.candidates]
    assert scores == sorted(scores, reverse=True)
    requests = [
        Request(QUESTION, replace(options, sample=replace(options.sample, seed=one.seed)), raw)
        for one in found.candidates
    ]
    alone = runtime.generate_many(requests, parallel=5)
    for result in alone:
        one = found.candidates[result.index]
        assert result.generation is not None
        assert result.generation.text == one.generation.text
        logps = [step.logp for step in result.steps]
        assert np.abs(np.subtract(logps, [step.logp for step in one.steps])).max() < NEAR
        assert one.mean_logp == pytest.approx(np.mean(logps), abs=NEAR)
        weights = [
            [share for _, share in each.weights] for each in (one.generation, result.generation)
        ]
        assert weights[0] == pytest.approx(weights[1], abs=NEAR)
    assert {one.seed for one in found.candidates} == set(range(3, 8))


def test_answers_of_a_form_are_ranked_by_the_majority(runtime: Runtime) -> None:
    form = Structure('{"enum": ["yes", "no", "maybe"]}')
    options = GenerateOptions(max_tokens=6, structure=form, sample=OPTIONS.sample)
    found = best_of(runtime, QUESTION, options, 8)
    said = Counter(one.generation.text.strip() for one in found.candidates)
    assert found.ranked_by is RankedBy.MAJORITY
    assert said[found.candidates[0].generation.text.strip()] == max(said.values())
    assert found.candidates[0].score == max(said.values()) / 8


def test_a_stop_ends_all_of_them(runtime: Runtime) -> None:
    with pytest.raises(Cancelled):
        best_of(runtime, QUESTION, OPTIONS, 3, cancel=lambda: True)


def test_drawn_choices_follow_their_likelihoods() -> None:
    logps = np.log([0.2, 0.5, 0.3])
    found = np.bincount(draw_choices(list(logps - 7), 20_000, 1.0, 0), minlength=3) / 20_000
    assert found == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    sharper = np.array([0.04, 0.25, 0.09]) / 0.38
    found = np.bincount(draw_choices(list(logps), 20_000, 0.5, 0), minlength=3) / 20_000
    assert found == pytest.approx(sharper, abs=0.015)


def test_what_says_nothing_has_no_vote() -> None:
    assert shares(["a", None, "b", "a"]) == [0.5, 0.0, 0.25, 0.5]


def test_what_a_source_lacks_counts_before_the_score() -> None:
    note = Document("Takes aspirin 81 mg daily for the heart.")
    said = [  # the mean log-probability, facts that the note lacks
        ("Takes warfarin 5 mg daily.", -0.1, 2),
        ("Takes aspirin 5 mg daily.", -0.2, 1),
        ("Takes aspirin daily.", -0.9, 0),
        ("Takes aspirin 81 mg for the heart.", -0.5, 0),
        ("Everything looks wonderful, lovely weather.", -0.3, 0),  # a statement, no fact
        (" ", -0.05, 0),
    ]
    results = []
    for place, (text, logp, _) in enumerate(said):
        made = SimpleNamespace(text=text, structured=None, finish=FinishReason.STOP)
        steps = (step(0, text.encode(), logp=logp),)
        results.append(RequestResult(place, cast(Generation, made), steps, None))
    found = ranked(QUESTION, OPTIONS, results[::-1], unsupported=missing_from(note))
    seeds = [one.seed - OPTIONS.sample.seed for one in found.candidates]
    assert seeds == [3, 2, 4, 1, 0, 5]
    shown = found.as_object()["candidates"]
    assert isinstance(shown, list)
    assert [one["unsupported"] for one in shown] == [said[seed][2] for seed in seeds]
    plain = ranked(QUESTION, OPTIONS, results)
    assert [one.score for one in plain.candidates] == sorted((logp for _, logp, _ in said))[::-1]
    assert "unsupported" not in str(plain.as_object())
