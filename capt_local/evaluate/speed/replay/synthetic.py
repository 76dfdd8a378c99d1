"""Traces that were never recorded: answers of which a given share of choices is the target's own.

Proxy tuning was published with 75 to 87 % of choices unchanged (Liu et al. 2024). Which ones is
drawn independently. How sure the target is follows from that alone, by the shares below; nothing
else is assumed: no token is gated, and neither the text before nor the expert is worth a draft. So
a ratio from such a trace is what the target's own drafts can do.
"""

from __future__ import annotations

import numpy as np

from capt_local.decoding.speculate.leading import grade_of
from capt_local.errors import UsageError
from capt_local.evaluate.speed.replay.trace import LONGEST_DRAFT, Offer, Place, Trace, Walked

SHARES = (60, 75, 87)
# Probability of the target's likeliest token, by the grades of its drafts, and how often each comes
# where its choice stands and where it does not: a target that is sure is rarely overruled.
_SURE = (0.2, 0.45, 0.75, 0.97)
_UNCHANGED = (0.05, 0.10, 0.25, 0.60)
_CHANGED = (0.30, 0.35, 0.25, 0.10)


def synthetic(
    percent: int, *, answers: int = 4, prompt: int = 512, steps: int = 128, seed: int = 1
) -> Trace:
    """A trace by chance.

    Args:
        percent: of the choices that are the target's own, 1 to 100.
        answers: how many.
        prompt: tokens of each prompt.
        steps: tokens of each answer.
        seed: of the draws.

    Raises:
        UsageError: the percentage is none.
    """
    if not 1 <= percent <= 100:
        raise UsageError("The share of unchanged choices is 1 to 100 percent.")
    rng = np.random.default_rng(seed)
    made = tuple(_answer(rng, percent / 100, prompt, steps) for _ in range(answers))
    return Trace(f"synthetic {percent} %", made)


def _answer(rng: np.random.Generator, share: float, prompt: int, steps: int) -> Walked:
    # Exactly the share, in an order by chance, so that few answers are enough.
    own = np.zeros(steps, bool)
    own[: round(share * steps)] = True
    rng.shuffle(own)
    sure = [float(_SURE[rng.choice(4, p=_UNCHANGED if each else _CHANGED)]) for each in own]
    places = tuple(
        Place(False, bool(own[i]), sure[i], {"target-draft": _offer(own[i:], sure[i:])})
        for i in range(steps)
    )
    return Walked({"target": prompt}, places)


def _offer(own: np.ndarray, sure: list[float]) -> Offer:
    """The target's own tokens from here on: right up to the first that it does not choose."""
    size = min(LONGEST_DRAFT, len(own))
    wrong = np.flatnonzero(~own[:size])
    right = int(wrong[0]) if len(wrong) else size
    grades = tuple(grade_of(each) for each in sure[:size])
    return Offer(grades=grades, right=right, plausible=size)
