"""Which markers stand around a model's reasoning.

Qwen3, DeepSeek-R1 and others write `<think>` and `</think>`; gpt-oss writes channels, of which
`final` is the answer. Some templates open the reasoning themselves, so that the model only closes
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from capt_local.vocab.vocabulary import TokenKind, Vocabulary

_PAIRS = (
    (b"<think>", b"</think>"),
    (b"[THINK]", b"[/THINK]"),
    (b"<seed:think>", b"</seed:think>"),
    (b"<|START_THINKING|>", b"<|END_THINKING|>"),
)
_CHANNEL, _MESSAGE, _NEXT = b"<|channel|>", b"<|message|>", b"<|end|><|start|>assistant"
# Whether what stands behind them is reasoning.
_CHANNELS = ((b"analysis", True), (b"commentary", True), (b"final", False))


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """What stands where reasoning begins and ends; control tokens as their names.

    Attributes:
        begin: what may stand at the beginning of the output, and whether reasoning follows it.
        within: what may stand behind reasoning, and whether more reasoning follows it.
    """

    begin: tuple[tuple[bytes, bool], ...]
    within: tuple[tuple[bytes, bool], ...]

    def opened_by(self, scaffold: bytes) -> bool:
        """Whether the template has opened the reasoning.

        Args:
            scaffold: what it wrote behind the last message.
        """
        end = scaffold.rstrip()
        return any(end.endswith(marker) for marker, reasons in self.begin if reasons)


def find_markers(vocabulary: Vocabulary, template: str) -> ReasoningMarkers | None:
    """The markers of a model; None for one that writes no reasoning.

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
        begin = tuple((_CHANNEL + name + _MESSAGE, reasons) for name, reasons in _CHANNELS)
        return ReasoningMarkers(
            begin, tuple((_NEXT + marker, reasons) for marker, reasons in begin)
        )
    found = [pair for pair in _PAIRS if has(pair)]
    if not found:
        return None
    begins, ends = zip(*found, strict=True)
    return ReasoningMarkers(
        tuple((begin, True) for begin in begins), tuple((end, False) for end in ends)
    )
