"""Mixture weights from the user's text: Bayesian model averaging over exponents (a, b, c).

Each combination is a distribution; its weight is proportional to the probability that it gave to
the text so far. Over any text the mixture's loss is then within log(m) nats of the best of m
combinations in hindsight; with the target alone among them it can hardly be worse than the target.
Exponential forgetting gives up that bound to adapt to a text that changes.

The prompt is decoded anyway. While that happens, the logits at its last few dozen text positions
are used, one model after the other, and only the candidates' probabilities are kept. Positions that
are no token boundary of some proxy are left out: its tokens there would depend on what comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.alignment import DEPTH, CandidateQuery, EarlierRow, rests
from capt_local.decoding.combine import Candidates, softmax
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import FORGETTING
from capt_local.decoding.proxy import Proxy, proxy_logps, queries
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import FloatArray, Row, Vocabulary, common_length


class Evidence:
    """Accumulates the log-likelihood of a text under m combinations, over `seen` tokens.

    At each token the earlier sum is multiplied by `forgetting`; 1 is a plain sum.
    """

    def __init__(self, count: int, forgetting: float = FORGETTING) -> None:
        self.seen = 0
        self._forgetting = forgetting
        self._logs = np.zeros(count)

    @property
    def weights(self) -> FloatArray:
        """Weights of the mixture, summing to 1, shape (m,)."""
        shares = np.exp(self._logs - self._logs.max())
        result: FloatArray = shares / shares.sum()
        return result

    def observe(self, logps: FloatArray) -> None:
        """Adds the log-probability of the next token under each combination, shape (m,)."""
        self._logs = self._forgetting * self._logs + logps
        # Only differences matter; subtracting the largest keeps precision over a long text.
        self._logs -= self._logs.max()
        self.seen += 1


# Token boundaries of a text in one model: from byte offset to the number of prompt tokens before
# it, and the bytes of the last one, the last two, ... of these tokens.
_Marks = dict[int, tuple[int, tuple[bytes, ...]]]


@dataclass(frozen=True, slots=True)
class TextPosition:
    """A position of the user's text at which every model has a token boundary.

    Attributes:
        target: tokens of the target before it.
        proxies: for each proxy the number of tokens before it, and the bytes of the last one, the
            last two, ... of them, within the text and the depth of healing.
    """

    target: int
    proxies: tuple[tuple[int, tuple[bytes, ...]], ...]


class Memory:
    """Evidence of the last prompt's positions, reused by a prompt with a common prefix.

    So the next turn of a conversation need not decode earlier turns again.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._setting: object = None
        self._texts: list[list[int]] = []
        self._known: dict[TextPosition, FloatArray] = {}

    def recall(self, ensemble: Ensemble) -> dict[TextPosition, FloatArray]:
        """The log-probabilities of the next token by position, shape (m,), of the common prefix.

        The caller adds new positions to the returned dictionary, which the next prompt reuses.
        """
        alignments = tuple(id(each.alignment) for each in ensemble.proxies)
        scales = tuple(each.model.adapter_scales for each in ensemble.models)
        setting = (alignments, ensemble.options.plausibility, ensemble.exponents, scales)
        texts = [ensemble.tokens, *(each.tokens for each in ensemble.proxies)]
        if setting != self._setting:
            self._known = {}
        else:
            same = [common_length(*pair) for pair in zip(self._texts, texts, strict=True)]
            self._known = {
                place: found
                for place, found in self._known.items()
                # The token at the position itself must be the same too.
                if place.target < same[0]
                and all(at[0] <= size for at, size in zip(place.proxies, same[1:], strict=True))
            }
        self._setting, self._texts = setting, [list(text) for text in texts]
        return self._known


def prefill(
    ensemble: Ensemble, prompts: Mapping[str, Prompt], memory: Memory | None = None
) -> Evidence | None:
    """Decodes the prompt in all models, and sets the mixture weights unless they are fixed.

    The ensemble was started with the same prompts; new evidence is added to `memory`.

    Returns:
        The evidence behind the weights; `seen` is the number of positions used. None if the
        weights are fixed.

    Raises:
        Cancelled: the models were stopped.
    """
    if not ensemble.mixes:
        _read(ensemble, prompts, [])
        return None
    evidence = Evidence(len(ensemble.exponents), ensemble.options.forgetting)
    places = _positions(ensemble, prompts)
    known = (memory or Memory()).recall(ensemble)
    new = [place for place in places if place not in known]
    known.update(zip(new, _read(ensemble, prompts, new), strict=True))
    for place in places:
        evidence.observe(known[place])
    ensemble.set_weights(evidence.weights)
    return evidence


def _read(
    ensemble: Ensemble, prompts: Mapping[str, Prompt], places: Sequence[TextPosition]
) -> list[FloatArray]:
    """The evidence (log-probabilities) at some positions; decodes the whole prompt."""
    contrast, proxies = ensemble.contrast, ensemble.proxies
    rows: list[tuple[Candidates, Row]] = []
    cache, tokens = ensemble.leader, ensemble.tokens
    wanted = sorted({place.target for place in places} | {len(tokens)})
    for count, row in cache.prefill(tokens, wanted):
        if count == len(tokens):
            cache.store_row(tokens, count, row)
        else:
            rows.append((contrast.candidates(row), row))
    by_alignment = [queries(own, proxies) for own, _ in rows]
    probabilities = [
        _read_proxy(each, index, places, [at[id(each.alignment)] for at in by_alignment])
        for index, each in enumerate(proxies)
    ]
    for proxy in proxies:
        if prompts[proxy.cache.role].continues_text:
            # Its last tokens may change with the answer, so they are decoded as in a step.
            proxy.cache.rewind(proxy.stable)
    found = []
    for number, (place, (own, row)) in enumerate(zip(places, rows, strict=True)):
        logps = proxy_logps(
            own, proxies, by_alignment[number], [each[number] for each in probabilities]
        )
        here = contrast.combined(own, logps, row, ensemble.weights)
        found.append(here.gains(tokens[place.target]))
    return found


def _read_proxy(
    proxy: Proxy,
    index: int,
    places: Sequence[TextPosition],
    position_queries: Sequence[CandidateQuery],
) -> list[FloatArray]:
    """One proxy's probabilities of each position's candidates; decodes the whole prompt."""
    depth, tokens = proxy.depth, proxy.tokens
    index_of = {place.proxies[index][0]: number for number, place in enumerate(places)}
    parts = {count: some[:depth] for count, some in (place.proxies[index] for place in places)}
    behind = {count - back for count, some in parts.items() for back in range(1, len(some) + 1)}
    last = proxy.needed_positions()
    wanted = sorted(set(index_of) | behind | set(last))
    found: list[FloatArray] = [np.empty(0)] * len(places)
    rows: dict[int, Row] = {}
    for count, logits in proxy.cache.prefill(tokens, wanted):
        if count in index_of or count in behind:
            rows[count] = softmax(logits)
        if count in index_of:
            back = [
                EarlierRow(rows[count - number], tokens[count - number], rest)
                for number, rest in enumerate(parts[count], 1)
            ]
            query = position_queries[index_of[count]]
            found[index_of[count]] = proxy.alignment.probability(query, rows[count], back)
        if count in last:
            proxy.cache.store_row(tokens, count, logits)
        rows = {place: row for place, row in rows.items() if place > count - depth}
    return found


def _positions(ensemble: Ensemble, prompts: Mapping[str, Prompt]) -> list[TextPosition]:
    """The last positions of the user's text that are token boundaries of all models, in order."""
    turns = [_user_texts(prompts[each.role], each.model.vocabulary) for each in ensemble.models]
    found: list[TextPosition] = []
    for (own, marks), *others in zip(*turns, strict=True):
        if any(text != own for text, _ in others):
            continue  # a template merged other text into this turn: no common positions
        for offset, (count, _) in sorted(marks.items()):
            before = tuple(other[offset] for _, other in others if offset in other)
            if len(before) == len(others) and count > 0 and all(at > 0 for at, _ in before):
                found.append(TextPosition(count, before))
    return found[len(found) - min(len(found), ensemble.options.evidence_tokens) :]


def _user_texts(prompt: Prompt, vocabulary: Vocabulary) -> list[tuple[bytes, _Marks]]:
    """The turns of the user, with the token boundaries of this model in them."""
    found: list[tuple[bytes, _Marks]] = []
    start = 0
    for segment in prompt.segments:
        if segment.evidence and segment.text is not None:
            pieces = [vocabulary.piece(token) for token in segment.tokens]
            # A space added by tokenizer or template is not part of the text: a negative offset.
            offset = len(segment.text) - sum(map(len, pieces))
            # No row precedes the very first token (of a model without BOS).
            first = max(1 - start, 0)
            marks: _Marks = {}
            for count, piece in enumerate(pieces):
                if offset >= 0:
                    last = pieces[max(first, count - DEPTH) : count]
                    marks[offset] = start + count, tuple(rests(last))
                offset += len(piece)
            found.append((segment.text, marks))
        start += len(segment.tokens)
    return found
