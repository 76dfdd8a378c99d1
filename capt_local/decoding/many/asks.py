"""A request among many, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capt_local.decoding.generation import Generation
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.step import Step
from capt_local.errors import CaptError
from capt_local.prompting.messages import Message


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.

    Attributes:
        prompt: one question, or a conversation that ends with the user's turn.
        options: how it is answered.
        raw: goes on with the text as it is, without a template.
    """

    prompt: str | Sequence[Message]
    options: GenerateOptions
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request.

    Attributes:
        index: its place among all, from 0.
        generation: the answer, which has ended; None where it could not begin.
        steps: all of it, token by token.
        error: what ended it before its time; None where nothing did.
    """

    index: int
    generation: Generation | None
    steps: tuple[Step, ...]
    error: CaptError | None
