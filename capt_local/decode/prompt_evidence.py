"""The evidence of the prompt: how well each alpha predicts what the user wrote.

The prompt is decoded anyway. On the way, the rows of its last few dozen text positions are read,
one model after the other, and only what they say about the candidates is kept. Positions where a
proxy has no token boundary are left out: its tokens there would depend on what comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.align.cover import Probabilities
from capt_local.decode.combine import Candidates, FloatArray, plausible
from capt_local.decode.evidence import Evidence
from capt_local.decode.proxy import softmax
from capt_local.decode.trio import Trio
from capt_local.prompt.messages import Prompt
from capt_local.vocab.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class _Place:
    """A position of the user's text at which every model has a token boundary.

    Attributes:
        target: tokens of the target before it.
        proxies: for each proxy the tokens before it, and the bytes of the last of them (empty
            where the text begins).
    """

    target: int
    proxies: tuple[tuple[int, bytes], ...]


def prefill_with_evidence(trio: Trio, prompts: Mapping[str, Prompt]) -> Evidence:
    """Decodes the prompt in all models and weighs the alphas by it.

    Args:
        trio: started with the same prompts.
        prompts: by role.

    Returns:
        The evidence; its `seen` says how many positions could be used.
    """
    evidence = Evidence(trio.options.grid)
    places = _places(trio, prompts)
    candidates = _read_target(trio, places)
    said = [_read_proxy(trio, index, places, candidates) for index in range(len(trio.proxies))]
    for place, own, expert, base in zip(places, candidates, *said, strict=True):
        shift = np.zeros(len(own.tokens))
        if len(own.tokens) > 1:
            shift = trio.compare(trio.events(own.tokens), expert, base)
        evidence.observe(own, shift, trio.tokens[place.target])
    return evidence


def _read_target(trio: Trio, places: Sequence[_Place]) -> list[Candidates]:
    candidates: list[Candidates] = []
    wanted = sorted({place.target for place in places} | {len(trio.tokens)})
    for count, row in trio.cached.read(trio.tokens, wanted):
        if count == len(trio.tokens):
            trio.keep_row(row)
        else:
            candidates.append(plausible(row, trio.options.plausibility))
    return candidates


def _read_proxy(
    trio: Trio, index: int, places: Sequence[_Place], candidates: Sequence[Candidates]
) -> list[FloatArray]:
    """What one proxy says about the candidates of each place; leaves it at the whole prompt."""
    proxy = trio.proxies[index]
    asked = {place.proxies[index][0]: number for number, place in enumerate(places)}
    last = {place.proxies[index][0]: place.proxies[index][1] for place in places}
    heals = {count - 1 for count, piece in last.items() if piece and count > 1}
    wanted = sorted(set(asked) | heals | set(proxy.wanted_rows()))
    said: list[FloatArray] = [np.empty(0)] * len(places)
    before: tuple[int, Probabilities] | None = None
    for count, logits in proxy.cached.read(proxy.tokens, wanted):
        row = softmax(logits)
        if count in asked:
            healed = before[1] if before and before[0] == count - 1 else None
            events = proxy.alignment.events(candidates[asked[count]].tokens)
            said[asked[count]] = proxy.alignment.probability(events, row, healed, last[count])
        if count in proxy.wanted_rows():
            proxy.keep_row(count, row)
        before = (count, row)
    return said


def _places(trio: Trio, prompts: Mapping[str, Prompt]) -> list[_Place]:
    """The last positions of the user's text at which all models have a boundary, in order."""
    texts = [_user_texts(prompts[each.role], each.model.vocabulary) for each in trio.models]
    found: list[_Place] = []
    for own, *others in zip(*texts, strict=True):
        if any(other.text != own.text for other in others):
            continue  # one template folds other text into this turn: no common positions
        for offset, count in sorted(own.marks.items()):
            if count > 0 and all(other.marks.get(offset, 0) > 0 for other in others):
                before = tuple((other.marks[offset], other.last_piece(offset)) for other in others)
                found.append(_Place(count, before))
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

    def last_piece(self, offset: int) -> bytes:
        """Bytes of the token that ends at an offset; empty where the turn begins."""
        count = self.marks[offset] - self.start
        return self.pieces[count - 1] if count else b""


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
