"""Known text scored token by token, as an answer is generated: the reference for one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.prompt_weights import Evidence, prefill
from capt_local.decoding.scoring import MARGIN, opening
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer


def text_nats(
    trio: Ensemble,
    tokenizers: Mapping[str, TextTokenizer],
    text: bytes,
    evidence: Evidence | None = None,
) -> tuple[float, int]:
    """-log p of a text, and the number of its windows."""
    nats, windows = 0.0, 0
    for place, token in enumerate(tokenizers[trio.leader.role].encode(text, start=True)):
        if place == 0 or trio.tokens_left <= MARGIN:
            trio.start(opening(trio.models, tokenizers, first=place == 0), reserve=MARGIN + 1)
            windows += 1
        if evidence is not None:
            trio.set_weights(evidence.weights)
        here = trio.distribution()
        nats -= here.token_logp(token)
        if evidence is not None:
            evidence.observe(here.gains(token))
        trio.advance(token)
    return nats, windows


def path_logps(
    trio: Ensemble, prompts: Mapping[str, Prompt], paths: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probabilities of the tokens of each path behind the prompt."""
    found = []
    for path in paths:
        trio.start(prompts)
        prefill(trio, prompts)
        logps = []
        for token in path:
            logps.append(trio.distribution().token_logp(token))
            trio.advance(token)
        found.append(logps)
    return found
