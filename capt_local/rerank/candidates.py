"""Several answers to one prompt, drawn side by side, and how they are ranked.

The prompt is read once; each candidate is an answer of its own seed in one batch with the others.
They are ranked by a scorer, by the majority among answers that say the same, or by the mean
log-probability that the combination gave to their tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.decoding.batching import Request
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.prompt_weights import Memory
from capt_local.decoding.step import Step
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime

MOST = 64
"""Candidates at most; each takes a KV cache of its own in every model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer of several.

    Attributes:
        seed: of its draws.
        text: of the answer.
        mean_logp: mean log-probability of its tokens under the combination, in nats.
        generation: the answer, which has ended.
        steps: all of it.
    """

    seed: int
    text: str
    mean_logp: float
    generation: Generation
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class BestOf:
    """Candidates in the order of their seeds."""

    candidates: tuple[Candidate, ...]


def best_of(
    runtime: Runtime,
    prompt: str | Sequence[Message],
    options: GenerateOptions,
    n: int,
    *,
    raw: bool = False,
    cancel: Callable[[], bool] | None = None,
) -> BestOf:
    """Draws n answers with the seeds options.sample.seed, + 1, ..."""
    check_count(n)
    shared = Memory()
    seeds = [options.sample.seed + place for place in range(n)]
    requests = [
        Request(
            prompt,
            dataclasses.replace(options, sample=dataclasses.replace(options.sample, seed=seed)),
            raw,
            shared,
        )
        for seed in seeds
    ]
    made: dict[int, Candidate] = {}
    for result in runtime.generate_many(requests, parallel=n, cancel=cancel):
        if result.error is not None:
            raise result.error
        generation, steps = result.generation, result.steps
        assert generation is not None, "it has ended without an error"
        logps = [step.logp for step in steps]
        mean = float(np.mean(logps)) if logps else 0.0
        seed = seeds[result.index]
        made[result.index] = Candidate(seed, generation.text, mean, generation, steps)
    return BestOf(tuple(made[place] for place in sorted(made)))


def draw_choices(logps: Sequence[float], n: int, temperature: float, seed: int) -> list[int]:
    """Places of n choices, drawn by their likelihoods: answers that can be nothing else."""
    scaled = np.asarray(logps) / temperature
    shares = np.exp(scaled - scaled.max())
    rng = np.random.default_rng(seed)
    return [int(place) for place in rng.choice(len(shares), n, p=shares / shares.sum())]


def check_count(n: int) -> None:
    """Refuses a number of candidates that cannot be made.

    Raises:
        UsageError: it is not 2 to MOST.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST:
        raise UsageError(f"--best-of takes 1 to {MOST}.")
