"""Whether to draft, from which source, and how far: by cost and by what has been right so far.

A draft is worth its cost if the tokens that it is expected to bring cost less than step by step.
How often each source is right is learnt while the answer is written, one count for each grade of
its own sureness, beginning with what was measured before.
"""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decoding.speculate.costs import Costs
from capt_local.decoding.speculate.draft import LEADING, Draft, DraftSource, GoOn

_STRENGTH = 4.0  # observations that a prior counts for
_FADING = 0.97  # of what was seen earlier, at each observation
_LONGEST = 12
# Steps that an answer may lose to drafts that fail: a few in all, and this share of its length.
_LOSS, _LOSS_SHARE = 1.0, 0.015
_HOPE = 0.75  # what a token is expected to cost before one was drafted, over step by step


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
        self._spent = 0.0
        self._steps = 0

    def gain(self, source: DraftSource, grade: int, most: int) -> float:
        """Tokens a unit of cost, over step by step, with the best length of a draft."""
        chance = self._records[source.name].chance(grade)
        tokens, expected = _beginning(source), 1.0
        best = 0.0
        for drafted in range(1, self._reach(source, most) + 1):
            tokens += _more(source, expected, chance)
            expected *= chance
            best = max(best, tokens / self._costs.check(drafted, source.leader))
        return best * self._costs.step

    def allows(self, gain: float) -> bool:
        """Whether a draft that promises such a gain is made."""
        return gain > (0.0 if self._always else 1.0)

    def _reach(self, source: DraftSource, most: int) -> int:
        """How long a draft may be: if all of it is wrong, no more is lost than may be."""
        most = min(most, _LONGEST)
        if self._always:
            return most
        steps, cost = self._steps + 1, self._costs
        left = (steps + _LOSS + _LOSS_SHARE * steps) * cost.step - self._spent
        lengths = range(1, most + 1)
        return next((n - 1 for n in lengths if cost.check(n, source.leader) > left), most)

    @property
    def _price(self) -> float:
        """What a token has cost so far, no more than step by step."""
        expected = _HOPE * self._costs.step
        price = (_STRENGTH * expected + self._spent) / (_STRENGTH + self._steps)
        return min(price, self._costs.step)

    def go_on(self, source: DraftSource, most: int) -> GoOn:
        """Says, token by token, whether a draft should get longer.

        It should if some longer one is worth more, with tokens at the price that they had so far.
        """
        record, cost = self._records[source.name], self._costs
        tokens, expected, drafted = _beginning(source), 1.0, 0
        reach = self._reach(source, most)

        def longer(grade: int) -> bool:
            nonlocal tokens, expected, drafted
            chance, now = record.chance(grade), tokens * self._price
            now -= cost.check(drafted, source.leader) if drafted else cost.step
            further, chances = tokens, expected
            for length in range(drafted + 1, reach + 1):
                further += _more(source, chances, chance)
                chances *= chance
                worth = further * self._price - cost.check(length, source.leader)
                if worth > now or (self._always and not drafted):
                    tokens += _more(source, expected, chance)
                    expected *= chance
                    drafted += 1
                    return True
            return False

        return longer

    def stepped(self) -> None:
        """A token was chosen without a draft."""
        self._steps += 1
        self._spent += self._costs.step

    def seen(self, source: DraftSource, grade: int, *, right: bool) -> None:
        """Takes in how a draft would have fared that was not made."""
        self._records[source.name].observe(grade, right=right)

    def checked(self, source: DraftSource, draft: Draft, accepted: int, chosen: int) -> None:
        """Takes in how a draft fared.

        Args:
            source: where it came from.
            draft: what it was.
            accepted: tokens of it that were chosen.
            chosen: tokens that were chosen in all, from what was read.
        """
        record = self._records[source.name]
        # Where the answer left the draft unasked, its next token was neither right nor wrong.
        for place, grade in enumerate(draft.grades[:chosen]):
            record.observe(grade, right=place < accepted)
        self._spent += self._costs.check(len(draft.tokens), source.leader)
        self._steps += chosen


def _beginning(source: DraftSource) -> float:
    """Tokens that a draft brings beside its own.

    One is chosen from what was read behind it; behind the target's own nothing has been read.
    """
    return 0.0 if source.leader == LEADING else 1.0


def _more(source: DraftSource, expected: float, chance: float) -> float:
    """What one token more brings, if those before it are right with the chance `expected`."""
    return expected if source.leader == LEADING else expected * chance
