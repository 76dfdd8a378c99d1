"""Several answers to one prompt, drawn side by side, and which of them is the best.

The prompt is read once; each candidate is an answer of its own seed, in one batch with the others.
They are ranked by a scorer where there is one; answers of a given form by the majority; else by
the mean log-probability that the combination gave to their tokens. Where answers must have a
source, those of which it lacks least come first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from capt_local.decoding.batching import Request, RequestResult
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import FinishReason, Step
from capt_local.errors import Cancelled, UsageError
from capt_local.prompting.messages import Message
from capt_local.rerank.scorer import Scorer
from capt_local.runtime import Runtime

Unsupported = Callable[[str], tuple[int, int]]
"""How many facts of an answer, and how many of its statements, a source lacks."""
MOST = 64
"""Candidates at most; each takes a KV cache of its own in every model."""


class RankedBy(StrEnum):
    """What candidates are ranked by."""

    SCORER = "scorer"
    MAJORITY = "majority"
    MEAN_LOGP = "mean-logprob"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer of several, which has ended."""

    seed: int
    generation: Generation
    steps: tuple[Step, ...]
    score: float  # by the scorer, the share of those that say the same, or mean_logp
    mean_logp: float  # of its tokens, in nats
    unsupported: tuple[int, int] | None = None  # facts and statements; None: not looked for


@dataclass(frozen=True, slots=True)
class BestOf:
    """Candidates, the best first; of equals the one with the smaller seed."""

    candidates: tuple[Candidate, ...]
    ranked_by: RankedBy
    notices: tuple[str, ...] = ()

    def as_object(self, shown: int = 1) -> dict[str, object]:
        """For `--json`: all candidates with their scores; the first `shown` without their text."""
        return {
            "ranked_by": self.ranked_by.value,
            "candidates": [
                {
                    "seed": one.seed,
                    "score": one.score,
                    "mean_logprob": one.mean_logp,
                    "tokens": len(one.steps),
                    "finish_reason": one.generation.finish,
                    **({"unsupported": one.unsupported[0]} if one.unsupported else {}),
                    **({} if place < shown else {"text": one.generation.text}),
                }
                for place, one in enumerate(self.candidates)
            ],
        }


def check_best_of(n: int, options: GenerateOptions) -> None:
    """Refuses what cannot be drawn.

    Raises:
        UsageError: n is not 1 to MOST, or all candidates would be the same.
    """
    if not 1 <= n <= MOST:
        raise UsageError(f"--best-of takes 1 to {MOST} candidates.")
    if n > 1 and not options.sample.temperature:
        raise UsageError(
            "Candidates at temperature 0 are all the same: give --temp, such as --temp 1."
        )


def best_of(
    runtime: Runtime,
    prompt: str | Sequence[Message],
    options: GenerateOptions,
    n: int,
    scorer: Scorer | None = None,
    *,
    raw: bool = False,
    cancel: Callable[[], bool] | None = None,
    question: str | None = None,
    unsupported: Unsupported | None = None,
) -> BestOf:
    """Draws n answers with the seeds `options.sample.seed`, + 1, ..., and ranks them.

    The scorer reads `question`, or else the user's last turn. With `unsupported`, those with
    the fewest facts without a source come first, of them those with the fewest such statements, and
    the score decides between equals; answers that are empty or incomplete in form are last. For
    `prompt`, `raw` and `cancel` see `Runtime.generate`.

    Raises:
        UsageError: see `check_best_of`.
        Cancelled: `cancel` said so.
        CaptError: what ended a candidate before its time.
    """
    check_best_of(n, options)
    requests = candidate_requests(prompt, options, n, raw=raw)
    results: list[RequestResult] = []
    for result in runtime.generate_many(requests, parallel=n, cancel=cancel):
        if result.error is not None:
            raise result.error
        assert result.generation is not None, "it has ended without an error"
        if result.generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("The answers were stopped.")
        results.append(result)
    return ranked(prompt, options, results, scorer, question=question, unsupported=unsupported)


def candidate_requests(
    prompt: str | Sequence[Message], options: GenerateOptions, n: int, *, raw: bool = False
) -> list[Request]:
    """The requests for n answers with the seeds `options.sample.seed`, + 1, ...: one group."""
    first, group = options.sample.seed, object()
    return [
        Request(
            prompt,
            options.with_seed(seed),
            raw,
            group=group,
        )
        for seed in range(first, first + n)
    ]


def ranked(
    prompt: str | Sequence[Message],
    options: GenerateOptions,
    results: Sequence[RequestResult],
    scorer: Scorer | None = None,
    *,
    question: str | None = None,
    unsupported: Unsupported | None = None,
) -> BestOf:
    """Ranks the answers to `candidate_requests`, in any order; see `best_of`."""
    first = min(result.index for result in results)
    made: list[tuple[int, Generation, tuple[Step, ...]]] = []
    for result in sorted(results, key=lambda result: result.index):
        assert result.generation is not None, "it has ended without an error"
        seed = options.sample.seed + result.index - first
        made.append((seed, result.generation, result.steps))
    means = [
        float(np.mean([step.logp for step in steps])) if steps else 0.0 for _, _, steps in made
    ]
    texts = [generation.text for _, generation, _ in made]
    if scorer is not None:
        by, scores = RankedBy.SCORER, scorer.scores(question or asked_of(prompt), texts)
    elif options.structure is not None:
        by, scores = RankedBy.MAJORITY, shares([_meaning(text) for text in texts])
    else:
        by, scores = RankedBy.MEAN_LOGP, means
    lacks = [unsupported(text) if unsupported else None for text in texts]
    # An answer that says nothing, or breaks off inside its form, lacks no source.
    broken = [
        unsupported is not None and (not each.text.strip() or each.structured is False)
        for _, each, _ in made
    ]
    candidates = [
        Candidate(*one, score, mean, lack)
        for one, score, mean, lack in zip(made, scores, means, lacks, strict=True)
    ]
    order = sorted(
        range(len(made)),
        key=lambda place: (broken[place], lacks[place] or (0, 0), -scores[place], place),
    )
    notices = tuple(scorer.notices) if scorer is not None else ()
    return BestOf(tuple(candidates[place] for place in order), by, notices)


def asked_of(prompt: str | Sequence[Message]) -> str:
    """What a scorer reads as the question: the user's last turn."""
    if isinstance(prompt, str):
        return prompt
    return next((turn.content for turn in reversed(prompt) if turn.role == "user"), "")


def shares(said: Sequence[str | None]) -> list[float]:
    """The share of answers that say the same as each; of None, which says nothing, 0."""
    counts = Counter(one for one in said if one is not None)
    return [counts[one] / len(said) if one is not None else 0.0 for one in said]


def draw_choices(logps: Sequence[float], n: int, temperature: float, seed: int) -> list[int]:
    """Places of n choices, drawn by their likelihoods (nats): answers that can be nothing else."""
    scaled = np.asarray(logps) / temperature
    weights = np.exp(scaled - scaled.max())
    rng = np.random.default_rng(seed)
    return [int(place) for place in rng.choice(len(weights), n, p=weights / weights.sum())]


def _meaning(text: str) -> str:
    """A structured answer without its layout: two of the same meaning are one."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return " ".join(text.split())
