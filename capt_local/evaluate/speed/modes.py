"""Modes of answering: through our own runtime, and through the binding's own `Llama`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from capt_local.decode.generation import Generation
from capt_local.decode.options import GenerateOptions, Method
from capt_local.decode.step import FinishReason, Step
from capt_local.engine.plain import PlainLlama
from capt_local.errors import Cancelled
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.taken import Drafts, Taken
from capt_local.runtime import Runtime


class RuntimeMode:
    """Answers with the models of a runtime.

    Args:
        runtime: with all models that the options need.
        options: how.
        cancel: asked while an answer is made.
    """

    def __init__(
        self, runtime: Runtime, options: GenerateOptions, cancel: Callable[[], bool]
    ) -> None:
        """Computes nothing."""
        self.options = options
        self._runtime = runtime
        self._cancel = cancel

    def answer(self, question: Question) -> Taken:
        """See `Mode`."""
        generation = self._begin(question, self.options)
        generation.prepare()
        before = self._counts()
        steps = list(self._steps(generation))
        inside, passes, decoded = self._counts()
        return Taken(
            prompt_tokens=generation.prompt_tokens["target"],
            prompt_seconds=generation.prompt_seconds,
            tokens=tuple(step.token for step in steps),
            seconds=generation.generate_seconds,
            logps=tuple(step.logp for step in steps),
            inside=inside - before[0],
            passes={role: count - before[1][role] for role, count in passes.items()},
            decoded={role: count - before[2][role] for role, count in decoded.items()},
            drafts=_drafts(generation),
        )

    def step(self, question: Question, index: int, top: int) -> tuple[tuple[int, ...], Step] | None:
        """Answers again up to one step, and tells its likeliest tokens.

        Returns:
            The tokens before it, and the step; None where the answer ended before.
        """
        options = replace(self.options, max_tokens=index + 1, top=top)
        steps = list(self._steps(self._begin(question, options)))
        if len(steps) <= index:
            return None
        return tuple(step.token for step in steps[:index]), steps[index]

    def _begin(self, question: Question, options: GenerateOptions) -> Generation:
        self._runtime.forget()  # nothing may be left of the prompt of another mode
        return self._runtime.generate(
            question.asked, options, raw=question.raw, cancel=self._cancel
        )

    def _steps(self, generation: Generation) -> Iterator[Step]:
        yield from generation
        if generation.finish is FinishReason.INTERRUPTED:
            raise Cancelled("Stopped on request.")

    def _counts(self) -> tuple[float, dict[str, int], dict[str, int]]:
        """Seconds in llama.cpp, batches and tokens decoded so far."""
        models = self._runtime.models
        return (
            sum(model.seconds for model in models.values()),
            {role: model.calls for role, model in models.items()},
            self._runtime.decoded(),
        )


class PlainMode:
    """Answers with the target alone, through the binding's own `Llama`.

    Args:
        plain: the target once more.
        runtime: that makes the prompts.
        options: how long answers are; they are greedy.
        cancel: asked between tokens.
    """

    def __init__(
        self,
        plain: PlainLlama,
        runtime: Runtime,
        options: GenerateOptions,
        cancel: Callable[[], bool],
    ) -> None:
        """Computes nothing."""
        self._plain = plain
        self._runtime = runtime
        self._options = replace(options, method=Method.TARGET)
        self._cancel = cancel

    def answer(self, question: Question) -> Taken:
        """See `Mode`."""
        asked = self._runtime.generate(question.asked, self._options, raw=question.raw)
        asked.end()  # only its prompt is wanted, and whether that fits
        prompt = asked.prompts["target"].tokens
        target = self._runtime.models["target"]
        most = min(self._options.max_tokens, target.context_limit - len(prompt))
        started = time.perf_counter()
        coming = self._plain.tokens(prompt)
        tokens = [next(coming)]
        first = time.perf_counter()
        while len(tokens) < most and not target.vocabulary.is_end[tokens[-1]]:
            if self._cancel():
                raise Cancelled("Stopped on request.")
            tokens.append(next(coming))
        done = time.perf_counter()
        return Taken(
            prompt_tokens=len(prompt),
            prompt_seconds=first - started,
            tokens=tuple(tokens),
            seconds=done - first,
            passes={"target": len(tokens) - 1},
            decoded={"target": len(tokens) - 1},
        )


def _drafts(generation: Generation) -> Drafts | None:
    """How an answer was drafted."""
    return None
