"""Driving the models of a runtime through a trace, and recording one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice

from capt_local.decoding.loop import Walk
from capt_local.decoding.options import GenerateOptions, Speed
from capt_local.decoding.prefill import prefill
from capt_local.decoding.prompt_evidence import Memory
from capt_local.decoding.proxy import Proxy
from capt_local.decoding.speculate.draft import DraftSource
from capt_local.decoding.speculate.lookup import Lookup
from capt_local.decoding.speculate.policy import Policy
from capt_local.decoding.speculate.reading_along import ExpertDraft
from capt_local.decoding.speculate.setup import costs, sources
from capt_local.decoding.speculate.speculation import Speculation
from capt_local.decoding.speculate.tally import Tally
from capt_local.decoding.step import FinishReason, Step
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled, UsageError
from capt_local.evaluate.speed.modes import Counts, drafts_of
from capt_local.evaluate.speed.questions import Question, notes_text
from capt_local.evaluate.speed.replay.driven import (
    DrivenExpert,
    DrivenLookup,
    DrivenTarget,
    DrivenTrio,
)
from capt_local.evaluate.speed.replay.script import Script
from capt_local.evaluate.speed.replay.trace import LONGEST_DRAFT, Trace, Walked
from capt_local.evaluate.speed.replay.watched import Watched
from capt_local.evaluate.speed.taken import Taken
from capt_local.runtime import Runtime

_STRIDE = 97  # tokens by which the texts of two answers are apart


@dataclass(frozen=True, slots=True)
class DrivenQuestion(Question):
    """A prompt of our own, and what is said after it.

    Attributes:
        answer: of the trace.
        said: tokens of the target that are said, and some more for drafts.
    """

    answer: Walked | None = None
    said: tuple[int, ...] = ()


def driven_questions(trace: Trace, runtime: Runtime) -> list[DrivenQuestion]:
    """A prompt about as long as that of each answer of a trace, and an answer as long.

    Raises:
        UsageError: an answer does not fit into the context of the target.
    """
    target = runtime.models["target"]
    text = target.tokenize(notes_text(), special=False)
    found = []
    for number, answer in enumerate(trace.answers, 1):
        prompt, said = answer.prompt["target"], len(answer.places)
        if prompt + said > target.context_limit:
            raise UsageError(
                f"Answer {number} of the trace takes {prompt + said} tokens, and the context of "
                f"the target holds {target.context_limit}: give a larger --ctx-size."
            )
        start = _STRIDE * number % len(text)
        stream = islice(cycle(text), start, start + prompt + said + LONGEST_DRAFT)
        tokens = tuple(stream)
        asked = target.vocabulary.text(tokens[:prompt]).decode()
        found.append(DrivenQuestion(asked, True, said, answer, tokens[prompt:]))
    return found


class ReplayMode:
    """Makes the answers of a trace: every batch is computed, every choice is the script's.

    Args:
        runtime: with all models that the options need.
        options: how.
        offered: the sources of drafts that the trace knows.
        memory: what prompts showed, of all modes: they need not read a prompt again.
        cancel: asked while an answer is made.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: GenerateOptions,
        offered: frozenset[str],
        memory: Memory,
        cancel: Callable[[], bool],
    ) -> None:
        """Computes nothing."""
        self._runtime = runtime
        self._options = options
        self._offered = offered
        self._memory = memory
        self._cancel = cancel

    def answer(self, question: Question) -> Taken:
        """See `Mode`."""
        assert isinstance(question, DrivenQuestion) and question.answer is not None
        options = replace(self._options, max_tokens=len(question.answer.places))
        generation = self._runtime.generate(question.asked, options, raw=True, cancel=self._cancel)
        prompts = generation.prompts
        script = Script(question.answer, question.said, len(prompts["target"].tokens))
        trio, tally = DrivenTrio(generation.trio, script), Tally()
        trio.start(prompts)
        prefill(trio, prompts, self._memory)
        before, started = Counts.of(self._runtime), time.perf_counter()
        walk = Walk(
            trio,
            options,
            self._cancel,
            ahead=self._speculation(trio, script, tally),
            force=script.token,
        )
        steps = list(walk)
        done = time.perf_counter()
        trio.drop_ahead()  # or the next mode would find rows of this text
        if walk.finish is FinishReason.INTERRUPTED:
            raise Cancelled("Stopped on request.")
        tally.steps, tally.gated = len(steps), sum(step.gated for step in steps)
        spent = Counts.of(self._runtime).since(before)
        return Taken(
            prompt_tokens=len(prompts["target"].tokens),
            prompt_seconds=None,
            tokens=tuple(question.said[: len(steps)]),
            seconds=done - started,
            inside=spent.seconds,
            sizes=spent.sizes,
            decoded=spent.decoded,
            drafts=None if self._options.speed is Speed.EXACT_STEPS else drafts_of(tally),
        )

    def _speculation(self, trio: Trio, script: Script, tally: Tally) -> Speculation | None:
        """As `decode.speculate.setup.speculation`, with sources that the script drives."""
        speed = self._options.speed
        if speed is Speed.EXACT_STEPS:
            return None
        trio.gates = True
        driven = [
            _driven(each, trio, script)
            for each in sources(trio)
            if each.name in self._offered and speed in (Speed.AUTO, each.name)
        ]
        policy = Policy(costs(trio), driven, always=speed is not Speed.AUTO)
        return Speculation(trio, driven, policy, tally) if driven else None


def record(
    runtime: Runtime,
    question: Question,
    options: GenerateOptions,
    cancel: Callable[[], bool],
) -> Walked:
    """Answers a question step by step, and asks every source of drafts at every place.

    Raises:
        ContextOverflow: the prompt does not fit.
        Cancelled: the user stopped it.
        UsageError: these models allow no drafts.
    """
    runtime.forget()
    options = replace(options, speed=Speed.AUTO)
    generation = runtime.generate(question.asked, options, raw=question.raw, cancel=cancel)
    trio = generation.trio
    if not trio.can_look_ahead:
        raise UsageError("A model cannot take tokens back, so there are no drafts to record.")
    trio.gates = True
    prefill(trio, generation.prompts)
    watched = Watched(trio, sources(trio))
    walk = Walk(trio, options, cancel, ahead=watched)
    steps: list[Step] = list(walk)
    if walk.finish is FinishReason.INTERRUPTED:
        raise Cancelled("Stopped on request.")
    lengths: Mapping[str, int] = generation.prompt_tokens
    return Walked(dict(lengths), watched.places(steps))


def _driven(real: DraftSource, trio: Trio, script: Script) -> DraftSource:
    if isinstance(real, Lookup):
        return DrivenLookup(real, script)
    if isinstance(real, ExpertDraft):
        expert = next(each for each in trio.proxies if each.cached.role == "expert")
        assert isinstance(expert, Proxy)
        return DrivenExpert(real, script, expert)
    return DrivenTarget(real, script)
