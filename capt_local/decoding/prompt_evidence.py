"""The evidence of the prompt: how well each combination predicts what the user wrote.

The prompt is decoded anyway. On the way, the rows of its last few dozen text positions are read,
one model after the other, and only what they say about the candidates is kept. Positions where a
proxy has no token boundary are left out: its tokens there would depend on what comes next.

What a position showed is remembered as long as the tokens before it stay, so that the next turn
of a conversation does not decode earlier ones again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capt_local.alignment.context import rests
from capt_local.alignment.projection import Back, CandidateQuery, FloatArray, Probabilities, View
from capt_local.decoding.cached import common_length
from capt_local.decoding.combine import Candidates
from capt_local.decoding.evidence import Evidence
from capt_local.decoding.follower import Follower
from capt_local.decoding.proxy import softmax
from capt_local.decoding.trio import Trio
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Place:
    """A position of the user's text at which every model has a token boundary.

    Attributes:
        target: tokens of the target before it.
        proxies: for each proxy the tokens before it, and the bytes of the last of them, the last
            two, ... as far as the text goes back.
    """

    target: int
    proxies: tuple[tuple[int, tuple[bytes, ...]], ...]


class Memory:
    """What the positions of the last prompt showed, for one that begins with the same tokens."""

    def __init__(self) -> None:
        """Remembers nothing."""
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._setting: object = None
        self._texts: list[list[int]] = []
        self._known: dict[Place, FloatArray] = {}

    def recall(self, trio: Trio) -> dict[Place, FloatArray]:
        """The log-probabilities of what came at each position that still stands, shape (m,).

        What is added to the dictionary is remembered for the next prompt.
        """
        alignments = tuple(id(each.alignment) for each in trio.proxies)
        setting = (alignments, trio.options.plausibility, trio.powers)
        texts = [trio.tokens, *(each.tokens for each in trio.proxies)]
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


def prefill_with_evidence(
    trio: Trio, prompts: Mapping[str, Prompt], memory: Memory | None = None
) -> Evidence:
    """Decodes the prompt in all models and weighs the combinations by it.

    Args:
        trio: started with the same prompts.
        prompts: by role.
        memory: what earlier prompts showed; this one is added.

    Returns:
        The evidence; its `seen` says how many positions could be used.
    """
    evidence = Evidence(len(trio.powers), trio.options.forgetting)
    places = _places(trio, prompts)
    known = (memory or Memory()).recall(trio)
    new = [place for place in places if place not in known]
    known.update(zip(new, _read(trio, new), strict=True))
    for place in places:
        evidence.observe(known[place])
    return evidence


def _read(trio: Trio, places: Sequence[Place]) -> list[FloatArray]:
    """What positions show; leaves all models at the whole prompt."""
    rule = trio.contrast
    rows = _read_target(trio, places)
    questions = [rule.questions(own, trio.proxies) for own, _ in rows]
    said = [
        _read_proxy(each, index, places, [asked[id(each.alignment)] for asked in questions])
        for index, each in enumerate(trio.proxies)
    ]
    found = []
    for number, (place, (own, row)) in enumerate(zip(places, rows, strict=True)):
        known = rule.logs(own, trio.proxies, questions[number], [each[number] for each in said])
        here = rule.combined(own, known, row, trio.weights)
        found.append(here.gains(trio.tokens[place.target]))
    return found


def _read_target(trio: Trio, places: Sequence[Place]) -> list[tuple[Candidates, Any]]:
    found = []
    wanted = sorted({place.target for place in places} | {len(trio.tokens)})
    for count, row in trio.cached.read(trio.tokens, wanted):
        if count == len(trio.tokens):
            trio.keep_row(row)
        else:
            found.append((trio.contrast.candidates(row, trio.proxies), row))
    return found


def _read_proxy(
    proxy: Follower, index: int, places: Sequence[Place], questions: Sequence[CandidateQuery[Any]]
) -> list[FloatArray]:
    """What one proxy says about the candidates of each place; leaves it at the whole prompt."""
    depth = proxy.alignment.depth
    asked = {place.proxies[index][0]: number for number, place in enumerate(places)}
    parts = {count: some[:depth] for count, some in (place.proxies[index] for place in places)}
    behind = {count - back for count, some in parts.items() for back in range(1, len(some) + 1)}
    wanted = sorted(set(asked) | behind | set(proxy.wanted_rows()))
    said: list[FloatArray] = [np.empty(0)] * len(places)
    rows: dict[int, Probabilities] = {}
    for count, logits in proxy.cached.read(proxy.tokens, wanted):
        rows[count] = softmax(logits)
        if count in asked:
            back = [
                Back(rows[count - number], proxy.tokens[count - number], rest)
                for number, rest in enumerate(parts[count], 1)
            ]
            question = questions[asked[count]]
            said[asked[count]] = proxy.alignment.probability(question, View(rows[count], back))
        if count in proxy.wanted_rows():
            proxy.keep_row(count, logits)
        rows = {place: row for place, row in rows.items() if place > count - depth}
    return said


def _places(trio: Trio, prompts: Mapping[str, Prompt]) -> list[Place]:
    """The last positions of the user's text at which all models have a boundary, in order."""
    texts = [_user_texts(prompts[each.role], each.model.vocabulary) for each in trio.models]
    found: list[Place] = []
    for own, *others in zip(*texts, strict=True):
        if any(other.text != own.text for other in others):
            continue  # one template folds other text into this turn: no common positions
        for offset, count in sorted(own.marks.items()):
            if count > 0 and all(other.marks.get(offset, 0) > 0 for other in others):
                before = tuple((other.marks[offset], other.rests(offset)) for other in others)
                found.append(Place(count, before))
    return found[len(found) - min(len(found), trio.options.evidence_tokens) :]


@dataclass(frozen=True, slots=True)
class _UserText:
    """One turn of the user in the tokens of one model.

    Attributes:
        text: the bytes.
        marks: for each byte offset of the text that is a token boundary, the tokens of the whole
            prompt before it.
        pieces: the bytes of the tokens of the turn.
        start: tokens of the prompt before the turn.
    """

    text: bytes
    marks: dict[int, int]
    pieces: list[bytes]
    start: int

    def rests(self, offset: int) -> tuple[bytes, ...]:
        """Bytes of the token that ends at an offset, of the last two, ...; none where it begins.

        Nothing stands before the first token of all (of a model without BOS), so it is left out.
        """
        return tuple(rests(self.pieces[max(1 - self.start, 0) : self.marks[offset] - self.start]))


def _user_texts(prompt: Prompt, vocabulary: Vocabulary) -> list[_UserText]:
    """The turns of the user, with the places where tokens of this model begin."""
    found: list[_UserText] = []
    start = 0
    for segment in prompt.segments:
        if segment.evidence and segment.text is not None:
            pieces = [vocabulary.piece(token) for token in segment.tokens]
            # Spaces that the tokenizer or the template put in front are no part of the text.
            offset = len(segment.text) - sum(map(len, pieces))
            marks: dict[int, int] = {}
            for count, piece in enumerate(pieces):
                if offset >= 0:
                    marks[offset] = start + count
                offset += len(piece)
            found.append(_UserText(segment.text, marks, pieces, start))
        start += len(segment.tokens)
    return found
