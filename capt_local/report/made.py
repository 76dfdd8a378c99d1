"""The record of an answer that has just been made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capt_local.decode.step import Step
from capt_local.report.json import Answer, Timings

if TYPE_CHECKING:
    from capt_local.decode.generation import Generation


def answer_of(
    generation: Generation, steps: Sequence[Step], model: str, *, load: float = 0.0, **known: Any
) -> Answer:
    """What is known about an answer.

    Args:
        generation: of the answer.
        steps: all of it, thoughts included.
        model: id of the bundle.
        load: seconds for the models.
        known: further fields of `Answer`, and `finish` or `notices` where they are others.
    """
    own = [step for step in steps if not step.thought]
    fields: dict[str, Any] = {
        "steps": own,
        "text": generation.text,
        "finish": generation.finish,
        "model": model,
        "thoughts": generation.thoughts,
        "thought_tokens": len(steps) - len(own),
        "structured": generation.structured,
        "prompt_tokens": dict(generation.prompt_tokens),
        "context_limit": generation.context_limit,
        "weights": tuple(generation.weights),
        "timings": Timings(load, generation.prompt_seconds, generation.generate_seconds),
        "notices": tuple(generation.notices),
        "tally": generation.tally,
    }
    return Answer(**(fields | known))
