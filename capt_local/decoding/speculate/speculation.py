"""Drafts for one answer: made before a choice, checked by all models at once, taken back if wrong.

Nothing here chooses a token. What is drafted is only read ahead; each choice is then made as step
by step, from the same formulas over the same texts, and finds its rows there or has them decoded.
So a wrong draft, or none, changes the time and never the answer (but for the last bits of logits
that were computed in another batch). With a temperature the draws are the same, too: a drafted
token is kept with the probability that the combination gives it, which is what rejection sampling
does for a draft that is certain of itself (Leviathan et al. 2023), with the draw of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import Draft, DraftSource
from capt_local.decoding.speculate.policy import Policy
from capt_local.decoding.speculate.tally import Count, Tally
from capt_local.decoding.trio import Trio
from capt_local.errors import (
    Cancelled,
    ContextOverflow,
    MemoryShortage,
    ModelError,
    NumericalError,
)

T = TypeVar("T")


class Speculation:
    """See the module.

    Args:
        trio: at the beginning of an answer.
        sources: of drafts.
        policy: which of them, and when.
        tally: where it is counted.
    """

    def __init__(
        self, trio: Trio, sources: Sequence[DraftSource], policy: Policy, tally: Tally
    ) -> None:
        """Drafts nothing yet."""
        self._trio = trio
        self._sources = list(sources)
        self._policy = policy
        self._tally = tally
        self._source: DraftSource | None = None
        self._draft = Draft([], [])
        self._accepted = 0
        self._chosen = 0
        for source in sources:
            self._guarded(source, partial(source.start, trio))

    def prepare(self, most: int) -> None:
        """Reads ahead, if that is worth it, where the next choice has not been read yet.

        Args:
            most: tokens that the answer may still have.
        """
        trio = self._trio
        if self._source is not None and trio.has_row:
            return  # what was read covers this choice, too
        self._finish()
        # Expert and base may need a few tokens more than the target for the same text.
        most = min(most - 1, trio.room // 2 - 1, trio.cached.model.max_rows - 1)
        if most < 1:
            return
        trio.begin_ahead()
        source = self._best(most)
        if source is not None:
            self._try(source, most)

    def chose(self, token: int, here: Distribution | None) -> None:
        """A token has been chosen; see `Ahead`."""
        if here is not None:
            for source in list(self._sources):
                self._guarded(source, partial(self._learn, source, token, here))
        if self._source is None:
            self._policy.stepped()
            return
        self._chosen += 1
        place = self._chosen - 1
        if self._accepted == place < len(self._draft.tokens):
            right = self._draft.tokens[place] == token
            self._accepted += right
            self._tally.by_source[self._source.name].accepted += right
        if self._accepted < self._chosen:  # another token, or behind the draft
            self._finish()

    def _learn(self, source: DraftSource, token: int, here: Distribution) -> None:
        """Lets the policy learn of a source also where it has not drafted."""
        if source is not self._source:
            told = source.seen(self._trio, token, here)
            if told is not None:
                self._policy.seen(source, told[0], right=told[1])

    def _best(self, most: int) -> DraftSource | None:
        """The source that promises most."""
        found, best = None, 0.0
        for source in list(self._sources):
            gain = self._guarded(source, partial(self._gain, source, most))
            if gain is not None and gain > best:
                found, best = source, gain
        return found if self._policy.allows(best) else None

    def _gain(self, source: DraftSource, most: int) -> float:
        grade = source.grade(self._trio)
        return 0.0 if grade is None else self._policy.gain(source, grade, most)

    def _try(self, source: DraftSource, most: int) -> None:
        """Drafts and reads it."""
        draft = self._guarded(source, partial(self._drafted, source, most))
        if draft is None or not draft.tokens:
            return
        self._source, self._draft, self._accepted, self._chosen = source, draft, 0, 0
        count = self._tally.by_source.setdefault(source.name, Count())
        count.rounds += 1
        count.drafted += len(draft.tokens)

    def _drafted(self, source: DraftSource, most: int) -> Draft:
        go_on = self._policy.go_on(source, most)
        draft = source.draft(self._trio, most, go_on).checked(most, len(source.priors))
        if draft.tokens:
            self._trio.look_ahead(draft.tokens, read=draft.read)
        return draft

    def _guarded(self, source: DraftSource, work: Callable[[], T]) -> T | None:
        """What a source does; one that fails is left out from then on."""
        try:
            return work()
        except (Cancelled, MemoryShortage, ModelError, NumericalError):
            raise  # of a model, whoever asked it: no draft has failed, and the user has to know
        except ContextOverflow:
            self._sources.clear()
            self._tally.notices.append(
                "The context is nearly full, so the end of the answer is written without drafts."
            )
        except Exception as error:  # whatever it is, the answer does not need the draft
            self._sources = [each for each in self._sources if each is not source]
            self._tally.notices.append(
                f"Drafts by {source.name} failed ({type(error).__name__}) and are switched off; "
                "the answer is the same, and comes slower."
            )
        return None

    def _finish(self) -> None:
        """Takes in how the draft fared."""
        if self._source is None:
            return
        self._policy.checked(self._source, self._draft, self._accepted, self._chosen)
        self._source = None
