"""Whether to draft, from which source, and how far: by cost and by what has been right so far.

A draft is worth its cost if the tokens that it is expected to bring cost less than step by step.
How often each source is right is learnt while the answer is written, one count for each grade of
its own sureness, beginning with what was measured before.
"""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decode.speculate.costs import Costs
from capt_local.decode.speculate.draft import Draft, DraftSource, GoOn

_STRENGTH = 4.0  # observations that a prior counts for
_FADING = 0.97  # of what was seen earlier, at each observation
_LONGEST = 12
# Steps that an answer may lose to drafts that fail: a few in all, and this share of its length.
_LOSS, _LOSS_SHARE = 1.0, 0.015


class Record:
    """How often the tokens of a source were right, by grade."""

    def __init__(self, priors: Sequence[float]) -> None:
        """Starts with the priors."""
        self._right = [_STRENGTH * share for share in priors]
        self._seen = [_STRENGTH] * len(priors)

    def chance(self, grade: int) -> float:
        """The expected share of right tokens; -1: over all grades."""
        if grade < 0:
            return sum(self._right) / sum(self._seen)
        return self._right[grade] / self._seen[grade]

    def observe(self, grade: int, *, right: bool) -> None:
        """Takes in whether a token was right."""
        self._right[grade] = _FADING * self._right[grade] + right
        self._seen[grade] = _FADING * self._seen[grade] + 1.0


class Policy:
    """Of one answer.

    Args:
        costs: of decoding.
        sources: of drafts.
        always: whether to draft even where step by step seems cheaper (one source was asked for).
    """

    def __init__(
        self, costs: Costs, sources: Sequence[DraftSource], *, always: bool = False
    ) -> None:
        """Nothing has been drafted."""
        self._costs = costs
        self._always = always
        self._records = {source.name: Record(source.priors) for source in sources}
        self._lost = 0.0  # in steps
        self._steps = 0

    def gain(self, source: DraftSource, grade: int, most: int) -> float:
        """Tokens a unit of cost, over step by step, with the best length of a draft."""
        chance, best = self._records[source.name].chance(grade), 0.0
        # Behind the target's own draft no row has been read from which one more could be chosen.
        tokens, expected = (0.0, 1.0) if source.leader == "target" else (1.0, chance)
        for drafted in range(1, min(most, _LONGEST) + 1):
            tokens += expected
            expected *= chance
            best = max(best, tokens / self._costs.check(drafted, source.leader))
        return best * self._costs.step

    def allows(self, gain: float) -> bool:
        """Whether a draft that promises such a gain is made."""
        return self._always or (gain > 1.0 and self._lost < _LOSS + _LOSS_SHARE * self._steps)

    def go_on(self, source: DraftSource) -> GoOn:
        """Says, token by token, whether a draft should get longer."""
        record = self._records[source.name]
        limit = self._costs.further(source.leader) / self._costs.step
        chance, drafted = 1.0, 0

        def longer(grade: int) -> bool:
            nonlocal chance, drafted
            chance *= record.chance(grade)
            drafted += 1
            return drafted <= _LONGEST and (chance > limit or (self._always and drafted == 1))

        return longer

    def stepped(self) -> None:
        """A token was chosen without a draft."""
        self._steps += 1

    def checked(self, source: DraftSource, draft: Draft, accepted: int, chosen: int) -> None:
        """Takes in how a draft fared.

        Args:
            source: where it came from.
            draft: what it was.
            accepted: tokens of it that were chosen.
            chosen: tokens that were chosen in all, from what was read.
        """
        record = self._records[source.name]
        for place, grade in enumerate(draft.grades[: accepted + 1]):
            record.observe(grade, right=place < accepted)
        spent = self._costs.check(len(draft.tokens), source.leader) / self._costs.step
        self._lost += spent - chosen
        self._steps += chosen
