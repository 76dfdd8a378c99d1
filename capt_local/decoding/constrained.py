"""Generates one of several given answers: a token may come if it keeps one of them possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from capt_local.decoding.baselines import log_mass
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.prompt_weights import prefill
from capt_local.decoding.scoring import logps
from capt_local.errors import Cancelled, ModelError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.vocabulary import Vocabulary


def constrained(
    ensemble: Ensemble,
    prompts: Mapping[str, Prompt],
    choices: Sequence[bytes],
    cancel: Callable[[], bool] | None = None,
) -> int:
    """Takes the likeliest token that is left, until one choice is.

    Any tokens that spell a choice may come, canonical or not. Where a choice is complete, its end
    is one event, whichever end token of the model it is.

    Args:
        ensemble: configured.
        prompts: by role.
        choices: different, none of them empty.
        cancel: asked at every token.

    Returns:
        The place of the choice.

    Raises:
        Cancelled: `cancel` said so.
        ModelError: the vocabulary cannot spell a choice.
    """
    ensemble.start(prompts)
    prefill(ensemble, prompts)
    lead = prompts[ensemble.leader.role].lead
    tokens = _occurring(ensemble.leader.model.vocabulary, [lead + choice for choice in choices])
    live, size = list(range(len(choices))), 0
    while len(live) > 1:
        if cancel is not None and cancel():
            raise Cancelled("The choice was stopped.")
        ends = [place for place in live if len(choices[place]) == size]
        piece = _next(ensemble, tokens, [choices[place][size:] for place in live], lead)
        if piece is None:
            return ends[0]
        live = [place for place in live if choices[place].startswith(piece, size)]
        size, lead = size + len(piece), b""
    return live[0]


def _next(
    ensemble: Ensemble, tokens: Mapping[bytes, Sequence[int]], rests: Sequence[bytes], lead: bytes
) -> bytes | None:
    """Goes on by the likeliest token that begins a rest; None where the end is likelier.

    Of a token that is the tokenizer's own leading space alone the bytes are empty.
    """
    begins = {token for rest in rests for token in _begins(tokens, rest, lead)}
    allowed = np.array(sorted(begins), dtype=np.int32)
    here = ensemble.distribution()
    said = logps(here, allowed)
    if b"" in rests:
        end = log_mass(logps(here, ensemble.leader.model.vocabulary.end_ids))
        if not len(said) or end >= said.max():
            return None
    if not len(said):
        raise ModelError(f"The vocabulary of the {ensemble.leader.role} cannot spell a choice.")
    token = int(allowed[said.argmax()])
    piece = ensemble.piece(token)
    ensemble.advance(token)
    return piece


def _begins(tokens: Mapping[bytes, Sequence[int]], rest: bytes, lead: bytes) -> Iterator[int]:
    """Tokens that a text may begin with, with or without the space that stands in front.

    Where that space is due, one at the beginning of a token is it, and no part of the text: a text
    that itself begins with a space comes behind it.
    """
    spaced = bool(lead) and rest.startswith(lead)
    for size in range(0 if spaced else 1, len(rest) + 1):
        yield from tokens.get(lead + rest[:size], ())
        if lead and not spaced:
            yield from tokens.get(rest[:size], ())


def _occurring(vocabulary: Vocabulary, texts: Sequence[bytes]) -> dict[bytes, list[int]]:
    """The text tokens that occur in texts, by their bytes."""
    longest = int(vocabulary.lengths[vocabulary.is_text].max())
    parts = {
        text[start:end]
        for text in texts
        for start in range(len(text))
        for end in range(start + 1, min(len(text), start + longest) + 1)
    }
    found: dict[bytes, list[int]] = {}
    for token, piece in enumerate(vocabulary.pieces()):
        if piece in parts and vocabulary.is_text[token]:
            found.setdefault(piece, []).append(token)
    return found
