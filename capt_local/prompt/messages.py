"""What is asked, and what it becomes for one model.

A prompt is a row of segments: scaffolding that a template wrote, and text that people or models
wrote. The text is the same bytes for all three models; only its tokens differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capt_local.prompt.markers import ReasoningMarkers

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one origin.

    Attributes:
        tokens: of one model's vocabulary.
        text: the bytes that a person or model wrote; None for scaffolding (BOS included). A
            leading space that the tokenizer adds by itself is in the tokens but not here.
        evidence: whether the user wrote it, so that it may weigh the contrast.
    """

    tokens: tuple[int, ...]
    text: bytes | None = None
    evidence: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one model.

    Attributes:
        segments: in order.
        goes_on: whether the answer goes on with the text of the last segment (raw text) rather
            than beginning a text of its own (a turn).
        starts_fresh: for a turn: whether the answer is the first text behind a control token, so
            that a tokenizer with a leading space puts it there.
        lead: the space that the tokenizer puts in front of the answer, which is no part of it.
        notices: what the user should be told about how the prompt was made.
        markers: of the thoughts that the model may write first; None: it writes none.
    """

    segments: tuple[Segment, ...]
    goes_on: bool = False
    starts_fresh: bool = True
    lead: bytes = b""
    notices: tuple[str, ...] = ()
    markers: ReasoningMarkers | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens in order."""
        return tuple(token for segment in self.segments for token in segment.tokens)
