"""Where a model's thoughts begin and end: markers that its chat template or vocabulary has.

Qwen3, DeepSeek-R1 and others write `<think>` and `</think>`; gpt-oss writes channels, of which
`final` is the answer. Some templates open the thoughts themselves, so that the model only closes
them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from capt_local.prompt.markers import Markers
from capt_local.vocab.vocabulary import TokenKind, Vocabulary

_PAIRS = (
    (b"<think>", b"</think>"),
    (b"[THINK]", b"[/THINK]"),
    (b"<seed:think>", b"</seed:think>"),
    (b"<|START_THINKING|>", b"<|END_THINKING|>"),
)
_CHANNEL, _MESSAGE, _NEXT = b"<|channel|>", b"<|message|>", b"<|end|><|start|>assistant"
# Whether what stands behind them are thoughts.
_CHANNELS = ((b"analysis", True), (b"commentary", True), (b"final", False))


def markers_of(vocabulary: Vocabulary, template: str) -> Markers | None:
    """The markers of a model; None for one that does not write thoughts.

    Args:
        vocabulary: of the model.
        template: source of its chat template.
    """
    special = np.isin(vocabulary.kinds, (TokenKind.CONTROL, TokenKind.USER_DEFINED))
    names = {vocabulary.piece(token) for token in np.flatnonzero(special).tolist()}
    written = template.encode("utf-8", "replace")

    def has(parts: Iterable[bytes]) -> bool:
        parts = tuple(parts)
        return all(part in names for part in parts) or all(part in written for part in parts)

    if has((_CHANNEL, _MESSAGE)):
        begin = tuple((_CHANNEL + name + _MESSAGE, thinks) for name, thinks in _CHANNELS)
        return Markers(begin, tuple((_NEXT + marker, thinks) for marker, thinks in begin))
    found = [pair for pair in _PAIRS if has(pair)]
    if not found:
        return None
    begins, ends = zip(*found, strict=True)
    return Markers(tuple((begin, True) for begin in begins), tuple((end, False) for end in ends))
