"""The object that an answer becomes in the worker."""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decode.generation import Generation
from capt_local.decode.step import Step
from capt_local.report.json import Answer, JsonObject, Timings, answer_object

_ALL = 100  # candidates of a token: as many as the step has


def answer_object_of(model: str, generation: Generation, steps: Sequence[Step]) -> JsonObject:
    """An answer as `report.json` has it, without an id and a provenance.

    Args:
        model: id of the bundle.
        generation: that has ended.
        steps: all of it.
    """
    own = [step for step in steps if not step.thought]
    answer = Answer(
        steps=own,
        text=generation.text,
        finish=generation.finish,
        model=model,
        thoughts=generation.thoughts,
        thought_tokens=len(steps) - len(own),
        structured=generation.structured,
        prompt_tokens=dict(generation.prompt_tokens),
        context_limit=generation.context_limit,
        weights=tuple(generation.weights),
        timings=Timings(0.0, generation.prompt_seconds, generation.generate_seconds),
        notices=tuple(generation.notices),
    )
    return answer_object(answer, top_logprobs=_ALL)
