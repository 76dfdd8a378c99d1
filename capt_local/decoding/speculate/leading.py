"""Drafts by the target itself: its own likeliest tokens, which expert and base check in one batch.

It saves nothing on the target, which decodes token by token as it would alone; but most of its
choices stand, so the others take several at once.
"""

from __future__ import annotations

import numpy as np

from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import LEADING, Draft, GoOn
from capt_local.decoding.trio import Trio

_GRADES = (0.3, 0.6, 0.9)


def grade_of(probability: float) -> int:
    """0 to 3: how sure a model is of its likeliest token."""
    return sum(probability >= limit for limit in _GRADES)


class TargetDraft:
    """See the module. A grade is how sure the target is."""

    name = "target-draft"
    leader: str | None = LEADING
    priors: tuple[float, ...] = (0.25, 0.5, 0.8, 0.95)

    def start(self, trio: Trio) -> None:
        """Nothing to forget."""

    def grade(self, trio: Trio) -> int | None:
        """Not known before the target has been asked."""
        return -1

    def seen(self, trio: Trio, token: int, here: Distribution) -> tuple[int, bool] | None:
        """Whether the target would have said it, too: known at every step."""
        logp = here.candidates.logp
        best = int(logp.argmax())
        return grade_of(float(np.exp(logp[best]))), int(here.candidates.tokens[best]) == token

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """The likeliest token, the likeliest after it, ... as long as that seems worth it."""
        tokens, drafted, grades = list(trio.tokens), list[int](), list[int]()
        ends, kept = trio.cached.model.vocabulary.is_end, trio.cached.kept
        row = trio.lead_row()
        while True:
            token = int(row.argmax())
            grade = grade_of(1.0 / float(np.exp(row - row[token]).sum()))
            if ends[token] or len(drafted) == most or not go_on(grade):
                return Draft(drafted, grades, read=True)
            drafted.append(token)
            grades.append(grade)
            if len(drafted) == most:
                return Draft(drafted, grades, read=True)
            tokens.append(token)
            row = trio.cached.follow(tokens, 1)[0].copy()
            kept.put(tokens, row, view=False)
