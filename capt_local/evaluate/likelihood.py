"""Bits per byte: how well texts are predicted, comparable across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capt_local.decode.options import GenerateOptions
from capt_local.evaluate.texts import Text
from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How probable a text is.

    Attributes:
        id: of the text; "" for all together.
        nats: -log p.
        size: bytes.
        tokens: of the model whose tokens are scored.
        windows: how often the text was begun afresh because the context was full.
    """

    id: str
    nats: float
    size: int
    tokens: int
    windows: int

    @property
    def bits_per_byte(self) -> float:
        """-log2 p per byte of UTF-8."""
        return self.nats / math.log(2) / self.size


def measure(
    runtime: Runtime,
    texts: Sequence[Text],
    options: GenerateOptions,
    each: Callable[[Likelihood], None] = lambda _: None,
    cancel: Callable[[], bool] | None = None,
) -> Likelihood:
    """Scores every text by itself and adds them up.

    Args:
        runtime: with the models that the method needs.
        texts: at least one.
        options: the method, the alignment and the weight of the contrast.
        each: called with the result of each text as it is there.
        cancel: asked at every token; true ends the work.

    Raises:
        Cancelled: `cancel` said so.
    """
    found = []
    for text in texts:
        score = runtime.score(text.data, options, cancel=cancel)
        found.append(Likelihood(text.id, score.nats, score.size, score.tokens, score.windows))
        each(found[-1])
    return Likelihood(
        id="",
        nats=math.fsum(one.nats for one in found),
        size=sum(one.size for one in found),
        tokens=sum(one.tokens for one in found),
        windows=sum(one.windows for one in found),
    )
