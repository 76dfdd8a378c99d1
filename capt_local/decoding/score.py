"""How probable a given text is: the walk of the decoder along tokens that are already there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from capt_local.decoding.cached import CachedModel
from capt_local.decoding.evidence import Evidence
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled, ModelError
from capt_local.prompt.messages import Prompt, Segment
from capt_local.vocab.tokenizer import TextTokenizer
from capt_local.vocab.vocabulary import Vocabulary

# A word of the target may take a few tokens of a proxy; a window ends before that can overflow.
_MARGIN = 32


@dataclass(frozen=True, slots=True)
class TextScore:
    """Log-likelihood of a text.

    Attributes:
        nats: -log p of the tokens.
        tokens: of the target.
        size: bytes of the text.
        windows: how often the text was begun afresh because the context was full.
    """

    nats: float
    tokens: int
    size: int
    windows: int


def score_text(
    trio: Trio,
    tokenizers: Mapping[str, TextTokenizer],
    text: bytes,
    evidence: Evidence | None = None,
    cancel: Callable[[], bool] | None = None,
) -> TextScore:
    """Scores a text from its beginning, token by token.

    A text that is longer than the context is scored in windows, each begun afresh.

    Args:
        trio: of which the target's tokens are scored.
        tokenizers: of all its models, by role.
        text: UTF-8.
        evidence: if given, the weights follow the text: each token is predicted
            with the weights from the tokens before it.
        cancel: asked at every token.

    Raises:
        Cancelled: `cancel` said so.
        ContextOverflow: the context is too small for any window.
        ModelError: the vocabulary cannot spell the text.
    """
    tokens = _tokens(tokenizers[trio.cached.role], text, trio.cached.role)
    nats, windows = 0.0, 0
    for place, token in enumerate(tokens):
        if cancel is not None and cancel():
            raise Cancelled("The scoring was stopped.")
        if place == 0 or trio.room <= _MARGIN:
            prompts = opening(trio.models, tokenizers, first=place == 0)
            trio.start(prompts, reserve=_MARGIN + 1)
            windows += 1
        if evidence is not None:
            trio.observe(evidence.weights)
        here = trio.distribution()
        nats -= here.token_logp(token)
        if evidence is not None:
            evidence.observe(here.gains(token))
        trio.advance(token)
    return TextScore(nats, len(tokens), len(text), windows)


def _tokens(tokenizer: TextTokenizer, text: bytes, role: str) -> list[int]:
    try:
        return tokenizer.encode(text, start=True)
    except ValueError:
        raise ModelError(
            f"The vocabulary of the {role} cannot spell every byte of the text."
        ) from None


def opening(
    models: Iterable[CachedModel], tokenizers: Mapping[str, TextTokenizer], *, first: bool = True
) -> dict[str, Prompt]:
    """What stands in front of a text: prompts of one token, by role.

    Args:
        models: that read the text.
        tokenizers: by role.
        first: whether the text itself begins there, with the space that some tokenizers put in
            front, rather than a window of it.
    """
    prompts = {}
    for each in models:
        start = Segment((_first_token(each.model.vocabulary),))
        lead = tokenizers[each.role].lead if first else b""
        prompts[each.role] = Prompt((start,), starts_fresh=first, lead=lead)
    return prompts


def _first_token(vocabulary: Vocabulary) -> int:
    """The token that a text follows: BOS, or for models without one what ends a document."""
    return vocabulary.bos if vocabulary.bos is not None else int(vocabulary.end_ids[0])
