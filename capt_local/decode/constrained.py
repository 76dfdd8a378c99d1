"""Generates one of several given answers: a token may come if it keeps one of them possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from capt_local.decode.branches import log_mass, logps
from capt_local.decode.prefill import prefill
from capt_local.decode.trio import Trio
from capt_local.errors import Cancelled, ModelError
from capt_local.prompt.messages import Prompt
from capt_local.vocab.prefix_index import PrefixIndex


def constrained(
    trio: Trio,
    prompts: Mapping[str, Prompt],
    choices: Sequence[bytes],
    cancel: Callable[[], bool] | None = None,
) -> int:
    """Takes the likeliest token that is left, until one choice is.

    Any tokens that spell a choice may come, canonical or not. Where a choice is complete, its end
    is one event, whichever end token of the model it is.

    Args:
        trio: configured.
        prompts: by role.
        choices: different, none of them empty.
        cancel: asked at every token.

    Returns:
        The place of the choice.

    Raises:
        Cancelled: `cancel` said so.
        ModelError: the vocabulary cannot spell a choice.
    """
    trio.start(prompts)
    prefill(trio, prompts)
    index = PrefixIndex(trio.cached.model.vocabulary)
    lead = prompts[trio.cached.role].lead
    live, size = list(range(len(choices))), 0
    while len(live) > 1:
        if cancel is not None and cancel():
            raise Cancelled("The choice was stopped.")
        ends = [place for place in live if len(choices[place]) == size]
        piece = _next(trio, index, [choices[place][size:] for place in live], lead)
        if not piece:
            return ends[0]
        live = [place for place in live if choices[place].startswith(piece, size)]
        size, lead = size + len(piece), b""
    return live[0]


def _next(trio: Trio, index: PrefixIndex, rests: Sequence[bytes], lead: bytes) -> bytes:
    """Goes on by the likeliest token that begins a rest; b"" where the end is likelier."""
    allowed = np.array(sorted({t for rest in rests for t in _begins(index, rest, lead)}), np.int32)
    here = trio.distribution()
    said = logps(trio, here, allowed)
    if b"" in rests:
        end = log_mass(logps(trio, here, trio.cached.model.vocabulary.end_ids))
        if not len(said) or end >= said.max():
            return b""
    if not len(said):
        raise ModelError(f"The vocabulary of the {trio.cached.role} cannot spell a choice.")
    token = int(allowed[said.argmax()])
    piece = trio.piece(token)
    trio.advance(token)
    return piece


def _begins(index: PrefixIndex, rest: bytes, lead: bytes) -> Iterator[int]:
    """Tokens that a text may begin with, with or without the space that stands in front."""
    for front in {b"", lead}:
        for size in range(1, len(rest) + 1):
            low, high = index.interval(front + rest[:size])
            if low == high:
                break
            yield from index.ids[slice(*index.exact(front + rest[:size]))].tolist()
