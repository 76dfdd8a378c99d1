"""Modes of answering: through our own runtime, and through the binding's own `Llama`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from capt_local.decoding.generation import Generation
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.decoding.speculate.tally import Tally
from capt_local.decoding.step import FinishReason, Step
from capt_local.engine.plain import PlainLlama
from capt_local.errors import Cancelled
from capt_local.evaluate.speed.questions import Question
from capt_local.evaluate.speed.taken import Drafts, Taken
from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Counts:
    """What the models of a runtime have done.

    Attributes:
        seconds: in llama.cpp.
        sizes: batches by role and by what was in them.
        decoded: tokens of texts in them, by role.
    """

    seconds: float
    sizes: Mapping[str, Counter[int]]
    decoded: Mapping[str, int]

    @classmethod
    def of(cls, runtime: Runtime) -> Counts:
        """Until now."""
        models = runtime.models
        return cls(
            sum(model.seconds for model in models.values()),
            {role: Counter(model.sizes) for role, model in models.items()},
            runtime.decoded(),
        )

    def since(self, before: Counts) -> Counts:
        """What has been done since."""
        return Counts(
            self.seconds - before.seconds,
            {role: sizes - before.sizes[role] for role, sizes in self.sizes.items()},
            {role: count - before.decoded[role] for role, count in self.decoded.items()},
        )


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
        self._drafts = options.speed is not Speed.EXACT_STEPS
        self._runtime = runtime
        self._cancel = cancel

    def answer(self, question: Question) -> Taken:
        """See `Mode`."""
        generation = self._begin(question, self.options)
        generation.prepare()
        before = Counts.of(self._runtime)
        steps = list(self._steps(generation))
        spent = Counts.of(self._runtime).since(before)
        return Taken(
            prompt_tokens=generation.prompt_tokens["target"],
            prompt_seconds=generation.prompt_seconds,
            tokens=tuple(step.token for step in steps),
            seconds=generation.generate_seconds,
            logps=tuple(step.logp for step in steps),
            inside=spent.seconds,
            sizes=spent.sizes,
            decoded=spent.decoded,
            drafts=drafts_of(generation.tally) if self._drafts else None,
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
        most = min(question.length or self._options.max_tokens, target.context_limit - len(prompt))
        ends = target.vocabulary.is_end
        started = time.perf_counter()
        coming = self._plain.tokens(prompt)
        tokens = [next(coming)]
        first = time.perf_counter()
        while len(tokens) < most and (question.length or not ends[tokens[-1]]):
            if self._cancel():
                raise Cancelled("Stopped on request.")
            tokens.append(next(coming))
        done = time.perf_counter()
        return Taken(
            prompt_tokens=len(prompt),
            prompt_seconds=first - started,
            tokens=tuple(tokens),
            seconds=done - first,
            sizes={"target": {1: len(tokens) - 1}},
            decoded={"target": len(tokens) - 1},
        )


def drafts_of(tally: Tally) -> Drafts:
    """How an answer was drafted."""
    return Drafts(
        drafted=tally.drafted,
        accepted=tally.accepted,
        gated=tally.gated,
        rounds=tally.rounds,
        by_source={
            name: (count.drafted, count.accepted) for name, count in tally.by_source.items()
        },
    )
