"""The sharing of a piece's mass and its healing as the docstrings tell them, in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from capt_local.alignment import END_EVENT, SHORTER_PIECE_WEIGHT, TargetEvents
from capt_local.tokenization import TextTokenizer, Vocabulary
from tests.fakes import greedy_tokenizer

# By the wanted event's place, then by the proxy's token.
Parts = list[dict[int, Fraction]]
_ASIDE = Fraction(float(np.float32(SHORTER_PIECE_WEIGHT)))
_TINY = Fraction(float(np.finfo(np.float32).tiny))


def tokenizer_of(vocabulary: Vocabulary) -> TextTokenizer:
    return TextTokenizer(vocabulary, greedy_tokenizer(vocabulary))


def events_of(vocabulary: Vocabulary) -> TargetEvents:
    return TargetEvents(tokenizer_of(vocabulary))


def text_ids(vocabulary: Vocabulary) -> list[int]:
    return np.flatnonzero(vocabulary.is_text).tolist()


def longer(proxy: Vocabulary, start: bytes) -> dict[int, bytes]:
    """What each token that begins with `start` adds to it."""
    pieces = {token: proxy.piece(token) for token in text_ids(proxy)}
    return {
        token: piece[len(start) :]
        for token, piece in pieces.items()
        if piece.startswith(start) and piece != start
    }


def slow_parts(
    start: bytes,
    proxy: Vocabulary,
    events: TargetEvents,
    wanted: Sequence[int],
    prior: Sequence[float],
) -> Parts:
    """Which part of which piece each wanted event gets."""
    added, one = longer(proxy, start), Fraction(1)
    pieces = {events.of_piece(key): key for key in events.index.keys}
    parts: Parts = [{} for _ in wanted]
    for token, text in added.items():
        begun = [event for event, piece in pieces.items() if piece.startswith(text)]
        weights = {events.first(text): Fraction(1)}
        if begun:
            others = [other for other in added.values() if len(other) > len(text)]
            weights = {
                event: _ASIDE if any(pieces[event].startswith(o) for o in others) else one
                for event in begun
            }
        _give(parts, token, weights, wanted, prior)
    if not start:
        for token in proxy.end_ids.tolist():
            _give(parts, token, {END_EVENT: Fraction(1)}, wanted, prior)
    return parts


def _give(
    parts: Parts,
    token: int,
    weights: dict[int, Fraction],
    wanted: Sequence[int],
    prior: Sequence[float],
) -> None:
    """Divides a piece among the places that want one of its events."""
    shares = {
        place: weights[event] * Fraction(prior[place])
        for place, event in enumerate(wanted)
        if event in weights
    }
    total = sum(shares.values())
    for place, share in shares.items():
        parts[place][token] = share / total if total else Fraction(0)


def slow_probability(
    proxy: Vocabulary,
    events: TargetEvents,
    wanted: Sequence[int],
    prior: Sequence[float],
    rows: Sequence[np.ndarray],
    last: Sequence[int],
) -> list[Fraction]:
    """The mixture over all coverings.

    Args:
        proxy: vocabulary.
        events: of the target.
        wanted: events.
        prior: of each.
        rows: of the proxy: at the present place, one token back, two back, ...
        last: the proxy's last tokens, the very last one first.
    """
    parts = slow_parts(b"", proxy, events, wanted, prior)
    said = [_dot(part, rows[0]) for part in parts]
    total, weight, rest = Fraction(1), Fraction(1), b""
    for row, token in zip(rows[1:], last, strict=True):
        rest = proxy.piece(token) + rest
        weight /= max(Fraction(float(row[token])), _TINY)
        parts = slow_parts(rest, proxy, events, wanted, prior)
        said = [one + weight * _dot(part, row) for one, part in zip(said, parts, strict=True)]
        total += weight * sum(Fraction(float(row[other])) for other in longer(proxy, rest))
    return [one / total for one in said]


def _dot(part: dict[int, Fraction], row: np.ndarray) -> Fraction:
    return sum((share * Fraction(float(row[token])) for token, share in part.items()), Fraction(0))
