"""Recording: at every place of an answer, what each source of drafts would offer there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import Draft, DraftSource
from capt_local.decoding.step import Step
from capt_local.decoding.trio import Trio
from capt_local.evaluate.speed.replay.trace import LONGEST_DRAFT, Offer, Place


class Watched:
    """Takes the place of what drafts for an answer, and takes every draft back.

    Args:
        trio: at the beginning of an answer.
        sources: of drafts.
    """

    def __init__(self, trio: Trio, sources: Sequence[DraftSource]) -> None:
        """Has asked nothing."""
        self._trio = trio
        self._sources = sources
        self._seen: list[dict[str, tuple[int, Draft, int]]] = []
        for source in sources:
            source.start(trio)

    def prepare(self, most: int) -> None:
        """Asks all sources, in front of a choice."""
        found = {}
        longest = min(most - 1, self._trio.room // 2 - 1, LONGEST_DRAFT)
        for source in self._sources if longest > 0 else ():
            self._trio.begin_ahead()
            first = source.grade(self._trio)
            if first is not None:
                draft = source.draft(self._trio, longest, lambda _: True)
                if draft.tokens:
                    found[source.name] = first, draft, self._plausible(draft)
            self._trio.drop_ahead()
        self._seen.append(found)

    def chose(self, token: int, here: Distribution | None) -> None:
        """Nothing to do: what came is known at the end."""

    def places(self, steps: Sequence[Step]) -> tuple[Place, ...]:
        """What was seen, with what came.

        Args:
            steps: of the whole answer.
        """
        return tuple(
            Place(
                gated=step.gated,
                own=not step.changed,
                sure=min(1.0, math.exp(step.target_choice.logp)),
                offers={name: _offer(*each, steps[index:]) for name, each in seen.items()},
            )
            for index, (step, seen) in enumerate(zip(steps, self._seen, strict=False))
        )

    def _plausible(self, draft: Draft) -> int:
        """Tokens at the front of a draft that the target finds plausible."""
        trio = self._trio
        path = [*trio.tokens, *draft.tokens]
        if not draft.read:
            trio.cached.look_ahead(path, len(trio.tokens))
        return trio.plausible_ahead(path)


def _offer(first: int, draft: Draft, plausible: int, steps: Sequence[Step]) -> Offer:
    came = [step.token for step in steps[: len(draft.tokens)]]
    pairs = zip(draft.tokens, came, strict=False)
    right = next((n for n, (one, other) in enumerate(pairs) if one != other), len(came))
    return Offer(tuple(draft.grades), right, max(plausible, right), first)
