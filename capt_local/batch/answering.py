"""Answers to records inside the worker, and the object that becomes a line of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from capt_local.decode.options import GenerateOptions
from capt_local.decode.step import Step
from capt_local.errors import CaptError
from capt_local.prompt.messages import Message
from capt_local.report.json import Answer, JsonObject, Timings, answer_object

_ALL = 100  # candidates of a token: as many as the step has


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: str | list[Message]
    options: GenerateOptions
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    index: int
    generation: Any
    steps: tuple[Step, ...]
    error: CaptError | None


def answers(runtime: Any, asks: Iterable[Ask], parallel: int) -> Iterator[Answered]:
    """Answers in the order in which they are finished."""
    if hasattr(runtime, "generate_many"):
        yield from runtime.generate_many(asks, parallel=parallel)
        return
    for index, ask in enumerate(asks):
        try:
            generation = runtime.generate(ask.prompt, ask.options, raw=ask.raw)
            steps = tuple(generation)
        except CaptError as error:
            yield Answered(index, None, (), error)
        else:
            yield Answered(index, generation, steps, None)


def answer_object_of(runtime: Any, answered: Answered) -> JsonObject:
    """The answer as `report.json` has it, without id and provenance."""
    generation = answered.generation
    own = [step for step in answered.steps if not step.thought]
    answer = Answer(
        steps=own,
        text=generation.text,
        finish=generation.finish,
        model=runtime.bundle.id,
        thoughts=generation.thoughts,
        thought_tokens=len(answered.steps) - len(own),
        structured=generation.structured,
        prompt_tokens=dict(generation.prompt_tokens),
        context_limit=generation.context_limit,
        weights=tuple(generation.weights),
        timings=Timings(0.0, generation.prompt_seconds, generation.generate_seconds),
        notices=tuple(generation.notices),
    )
    return answer_object(answer, top_logprobs=_ALL)
