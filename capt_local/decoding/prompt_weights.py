"""Weights of the mixture from what the user wrote: Bayesian model averaging.

Each combination gives a distribution; its weight is proportional to the probability that it gave
to the text so far. Over any text the mixture is then within log(m) nats of the best of m
combinations in hindsight, so that with the target alone among them it can hardly be worse than the
target alone. A slow forgetting gives that bound up for a text that changes.

The prompt is decoded anyway. On the way, the rows of its last few dozen text positions are read,
one model after the other, and only what they say about the candidates is kept. Positions where a
proxy has no token boundary are left out: its tokens there would depend on what comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.alignment import DEPTH, Back, CandidateQuery, rests
from capt_local.decoding.combine import Candidates, softmax
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import FORGETTING
from capt_local.decoding.proxy import Proxy, proxy_logps, queries
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import FloatArray, Row, Vocabulary, common_length


class Evidence:
    """Collects how well each of m combinations predicts a text, of which it has `seen` tokens.

    At each token all earlier evidence is multiplied by `forgetting`; 1 forgets nothing.
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
        """Takes in the log-probability that each combination gave to what came, shape (m,)."""
        self._logs = self._forgetting * self._logs + logps
        # Only differences count; small numbers stay exact over a long text.
        self._logs -= self._logs.max()
        self.seen += 1


# Of a text in the tokens of one model: for the byte offset of each token boundary the tokens of the
# whole prompt before it, and the bytes of the last of them, the last two, ...
_Marks = dict[int, tuple[int, tuple[bytes, ...]]]


@dataclass(frozen=True, slots=True)
class TextPosition:
    """A position of the user's text at which every model has a token boundary.

    Attributes:
        target: tokens of the target before it.
        proxies: for each proxy the tokens before it, and the bytes of the last of them, the last
            two, ... as far as healing looks and the text goes back.
    """

    target: int
    proxies: tuple[tuple[int, tuple[bytes, ...]], ...]


class Memory:
    """What the positions of the last prompt showed, for one that begins with the same tokens.

    So the next turn of a conversation does not decode earlier ones again.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._setting: object = None
        self._texts: list[list[int]] = []
        self._known: dict[TextPosition, FloatArray] = {}

    def recall(self, ensemble: Ensemble) -> dict[TextPosition, FloatArray]:
        """The log-probabilities of what came at each position that still stands, shape (m,).

        What is added to the dictionary is remembered for the next prompt.
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
                # The token that came at the position must be the same, too.
                if place.target < same[0]
                and all(at[0] <= size for at, size in zip(place.proxies, same[1:], strict=True))
            }
        self._setting, self._texts = setting, [list(text) for text in texts]
        return self._known


def prefill(
    ensemble: Ensemble, prompts: Mapping[str, Prompt], memory: Memory | None = None
) -> Evidence | None:
    """Brings all models to the end of the prompt, and sets the weights where these are open.

    The ensemble was started with the same prompts; what this one shows is added to `memory`.

    Returns:
        What the weights come from; its `seen` says how many positions could be used. None where
        the weights are fixed.

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
    """What positions show; leaves all models at the whole prompt."""
    contrast, proxies = ensemble.contrast, ensemble.proxies
    rows: list[tuple[Candidates, Row]] = []
    cache, tokens = ensemble.leader, ensemble.tokens
    wanted = sorted({place.target for place in places} | {len(tokens)})
    for count, row in cache.prefill(tokens, wanted):
        if count == len(tokens):
            cache.keep_row(tokens, count, row)
        else:
            rows.append((contrast.candidates(row), row))
    asked = [queries(own, proxies) for own, _ in rows]
    said = [
        _read_proxy(each, index, places, [at[id(each.alignment)] for at in asked])
        for index, each in enumerate(proxies)
    ]
    for proxy in proxies:
        if prompts[proxy.cache.role].goes_on:
            # Its last tokens may change with the answer; they are steps like those of the answer.
            proxy.cache.rewind(proxy.stable)
    found = []
    for number, (place, (own, row)) in enumerate(zip(places, rows, strict=True)):
        logps = proxy_logps(own, proxies, asked[number], [each[number] for each in said])
        here = contrast.combined(own, logps, row, ensemble.weights)
        found.append(here.gains(tokens[place.target]))
    return found


def _read_proxy(
    proxy: Proxy,
    index: int,
    places: Sequence[TextPosition],
    questions: Sequence[CandidateQuery],
) -> list[FloatArray]:
    """What one proxy says about the candidates of each place; leaves it at the whole prompt."""
    depth, tokens = proxy.depth, proxy.tokens
    asked = {place.proxies[index][0]: number for number, place in enumerate(places)}
    parts = {count: some[:depth] for count, some in (place.proxies[index] for place in places)}
    behind = {count - back for count, some in parts.items() for back in range(1, len(some) + 1)}
    last = proxy.wanted_rows()
    wanted = sorted(set(asked) | behind | set(last))
    found: list[FloatArray] = [np.empty(0)] * len(places)
    rows: dict[int, Row] = {}
    for count, logits in proxy.cache.prefill(tokens, wanted):
        if count in asked or count in behind:
            rows[count] = softmax(logits)
        if count in asked:
            back = [
                Back(rows[count - number], tokens[count - number], rest)
                for number, rest in enumerate(parts[count], 1)
            ]
            question = questions[asked[count]]
            found[asked[count]] = proxy.alignment.probability(question, rows[count], back)
        if count in last:
            proxy.cache.keep_row(tokens, count, logits)
        rows = {place: row for place, row in rows.items() if place > count - depth}
    return found


def _positions(ensemble: Ensemble, prompts: Mapping[str, Prompt]) -> list[TextPosition]:
    """The last positions of the user's text at which all models have a boundary, in order."""
    turns = [_user_texts(prompts[each.role], each.model.vocabulary) for each in ensemble.models]
    found: list[TextPosition] = []
    for (own, marks), *others in zip(*turns, strict=True):
        if any(text != own for text, _ in others):
            continue  # one template folds other text into this turn: no common positions
        for offset, (count, _) in sorted(marks.items()):
            before = tuple(other[offset] for _, other in others if offset in other)
            if len(before) == len(others) and count > 0 and all(at > 0 for at, _ in before):
                found.append(TextPosition(count, before))
    return found[len(found) - min(len(found), ensemble.options.evidence_tokens) :]


def _user_texts(prompt: Prompt, vocabulary: Vocabulary) -> list[tuple[bytes, _Marks]]:
    """The turns of the user, and where tokens of this model begin in them."""
    found: list[tuple[bytes, _Marks]] = []
    start = 0
    for segment in prompt.segments:
        if segment.evidence and segment.text is not None:
            pieces = [vocabulary.piece(token) for token in segment.tokens]
            # Spaces that the tokenizer or the template put in front are no part of the text.
            offset = len(segment.text) - sum(map(len, pieces))
            # Nothing stands before the first token of all (of a model without BOS).
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
