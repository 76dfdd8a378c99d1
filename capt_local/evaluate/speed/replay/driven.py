"""A trio and sources of drafts that do what a script says, and the work that real ones do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capt_local.decoding.proxy import Proxy, softmax
from capt_local.decoding.rules import Distribution
from capt_local.decoding.speculate.draft import Draft, DraftSource, GoOn
from capt_local.decoding.speculate.leading import grade_of
from capt_local.decoding.trio import Trio
from capt_local.evaluate.speed.replay.script import Script
from capt_local.evaluate.speed.replay.trace import Offer
from capt_local.vocab.tokenizer import TextTokenizer

_SURE = np.float32(1e3)  # nats; what is left of the others is below any plausibility


class DrivenTrio(Trio):
    """Gates where the script does; what comes ahead is as plausible as the script says.

    Args:
        trio: a real one, started.
        script: of the answer.
    """

    def __init__(self, trio: Trio, script: Script) -> None:
        """Takes the models of the real one."""
        super().__init__(trio.cached, trio.proxies, trio.options, tokenizer=trio.tokenizer)
        self._script = script

    def sole(self) -> Distribution | None:
        """Takes the time that it takes, and is what the script says."""
        row = self._own_row()
        found = self.contrast.sole(row, self.proxies, self.weights)
        if not self.proxies or not self._script.gated(len(self.tokens)):
            return None
        if found is None:
            sure = np.full_like(row, -_SURE)
            sure[row.argmax()] = 0.0
            found = self.contrast.sole(sure, self.proxies, self.weights)
        return found

    def plausible_ahead(self, path: list[int]) -> int:
        """The same."""
        super().plausible_ahead(path)
        return min(self._script.plausible, len(path) - len(self.tokens))


class _Driven:
    """What all driven sources have in common.

    Args:
        real: whose place is taken.
        script: of the answer.
    """

    def __init__(self, real: DraftSource, script: Script) -> None:
        """Has offered nothing."""
        self.name, self.priors, self.leader = real.name, real.priors, real.leader
        self._real = real
        self._script = script

    def start(self, trio: Trio) -> None:
        """A new answer begins."""
        self._real.start(trio)

    def grade(self, trio: Trio) -> int | None:
        """As the trace says, in the time that the real source takes."""
        known = self._real.grade(trio)
        offer = self._offer(trio)
        if self.leader is not None:
            return known
        return None if offer is None else offer.first

    def seen(self, trio: Trio, token: int, here: Distribution) -> tuple[int, bool] | None:
        """See `DraftSource.seen`."""
        self._real.seen(trio, token, here)
        return None

    def _offer(self, trio: Trio) -> Offer | None:
        return self._script.offer(self.name, len(trio.tokens))

    def _take(self, trio: Trio, offer: Offer, count: int) -> Draft:
        """The first tokens of an offer, as a draft."""
        self._script.plausible = offer.plausible
        tokens = self._script.draft(offer, len(trio.tokens))[:count]
        return Draft(tokens, list(offer.grades[:count]))


class DrivenLookup(_Driven):
    """Copies what the trace says."""

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """See `DraftSource.draft`."""
        offer = self._offer(trio)
        if offer is None:
            return Draft([], [])
        size = min(most, len(offer.grades))
        count = next((n for n in range(size) if not go_on(offer.grades[n])), size)
        return self._take(trio, offer, count)


class DrivenTarget(_Driven):
    """The target decodes, token by token, what the trace says."""

    def seen(self, trio: Trio, token: int, here: Distribution) -> tuple[int, bool] | None:
        """As the trace says, in the time that the real source takes."""
        super().seen(trio, token, here)
        place = self._script.place(len(trio.tokens))
        return grade_of(place.sure), place.own

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """See `DraftSource.draft`; the same loop as the real one."""
        row, offer = trio.lead_row(), self._offer(trio)
        if offer is None:
            grade_of(_sureness(row))
            return Draft([], [], read=True)
        wanted = self._script.draft(offer, len(trio.tokens))
        tokens, count = list(trio.tokens), 0
        while count < len(wanted):
            grade_of(_sureness(row))
            if not go_on(offer.grades[count]):
                break
            count += 1
            if count == most:
                break
            tokens.append(wanted[count - 1])
            row = trio.cached.follow(tokens, 1)[0].copy()
            trio.cached.kept.put(tokens, row, view=False)
        return self._take(trio, offer, count)._replace(read=True)


class DrivenExpert(_Driven):
    """The expert decodes, piece by piece, what the trace says.

    Args:
        real: whose place is taken.
        script: of the answer.
        proxy: the expert.
    """

    def __init__(self, real: DraftSource, script: Script, proxy: Proxy) -> None:
        """Has offered nothing."""
        super().__init__(real, script)
        self._proxy = proxy
        model = proxy.cached.model
        self._tokenizer = TextTokenizer(model.vocabulary, model.tokenize)

    def draft(self, trio: Trio, most: int, go_on: GoOn) -> Draft:
        """See `DraftSource.draft`; the same loop as the real one, over the pieces of the text."""
        proxy, cached = self._proxy, self._proxy.cached
        proxy.settle()
        row, offer = proxy.row, self._offer(trio)
        if offer is None:
            row.argmax()
            return Draft([], [])
        wanted = self._script.draft(offer, len(trio.tokens))
        text = b"".join(map(trio.piece, wanted))
        pieces = self._tokenizer.encode(text, start=False)
        tokens, read = list(proxy.tokens), 0
        for number, piece in enumerate(pieces):
            row.argmax()
            # Pieces and tokens are about as long, so that a piece has the grade of "its" token.
            grade = offer.grades[min(number, len(wanted) - 1)]
            if number >= min(most, proxy.room) or not go_on(grade):
                break
            tokens.append(piece)
            read += len(cached.model.vocabulary.piece(piece))
            logits = cached.follow(tokens, 1)[0].copy()
            cached.kept.put(tokens, logits, view=False)
            row = softmax(logits)
        begun = read < len(text) and not text[read : read + 1].isspace()
        return self._take(trio, offer, min(most, _whole(trio, wanted, text[:read], begun=begun)))


def _whole(trio: Trio, wanted: Sequence[int], text: bytes, *, begun: bool) -> int:
    """Tokens of a draft that its text so far holds; a word that goes on counts no further."""
    ends = np.cumsum([len(trio.piece(token)) for token in wanted])
    count = int(np.searchsorted(ends, len(text), side="right"))
    cut = trio.tokenizer.last_cut(text) if begun and trio.tokenizer is not None else 0
    return min(count, int(np.searchsorted(ends, cut)) + 1) if cut else count


def _sureness(row: np.ndarray) -> float:
    """Probability of the likeliest token."""
    return 1.0 / float(np.exp(row - row.max()).sum())
