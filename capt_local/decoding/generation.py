"""One answer from prompt to end: what it took, and why it ended."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from capt_local.decoding.loop import Walk
from capt_local.decoding.options import GenerateOptions, Powers, Speed
from capt_local.decoding.prefill import prefill
from capt_local.decoding.prompt_evidence import Memory
from capt_local.decoding.reasoning import ReasoningParser
from capt_local.decoding.speculate.setup import speculation
from capt_local.decoding.speculate.tally import Tally
from capt_local.decoding.step import FinishReason, Step
from capt_local.decoding.structured import constraint_for
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled
from capt_local.prompting.messages import Prompt


class Generation:
    """An answer that is being made: an iterator of steps.

    Attributes:
        text_bytes: the answer so far; at the end, all of it.
        thoughts_bytes: what the model wrote before it, between its markers.
        finish: why it ended; None while it has not.
        prompts: by role.
        prompt_tokens: their lengths.
        context_limit: tokens that the smallest context holds.
        weights: exponents (a, b, c) of T^a E^b A^-c and their share of the mixture; empty for
            a method without.
        evidence_tokens: positions of the prompt that the weights come from.
        prompt_seconds: time for the prompt, all models.
        generate_seconds: time for the answer so far, time of the reader excluded.
        changed: steps at which the target alone would have chosen otherwise.
        structured: whether the answer so far has the form that it is kept to; None where it is
            kept to none.
        tally: what was drafted, accepted and left out.
        notices: what the user should know.
    """

    def __init__(
        self,
        trio: Trio,
        prompts: Mapping[str, Prompt],
        options: GenerateOptions,
        cancel: Callable[[], bool] | None,
        memory: Memory | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        """Checks that the prompt fits; decodes when the first step is asked for."""
        trio.configure(options.combine)
        trio.start(prompts)
        self._trio = trio
        self.prompts = dict(prompts)
        self._memory = memory
        constraint = None
        if options.structure is not None:
            lead = prompts[trio.cached.role].lead
            constraint = constraint_for(options.structure, trio.cached.model, lead)
        lead_prompt, vocabulary = prompts[trio.cached.role], trio.cached.model.vocabulary
        parser = ReasoningParser.for_prompt(
            lead_prompt, vocabulary, structured=constraint is not None
        )
        # What expert and base say is told with the candidates, so they are asked each time then.
        trio.gates = options.speed is not Speed.EXACT_STEPS and not options.top
        self.tally = Tally()
        ahead = speculation(trio, options, self.tally)
        self._walk = Walk(trio, options, cancel, constraint, parser, lead_prompt.turn_ends, ahead)
        self._steps: Iterator[Step] | None = None
        self._prompt_notices = [note for prompt in prompts.values() for note in prompt.notices]
        self._prompt_notices += notices
        self.text_bytes = b""
        self.thoughts_bytes = b""
        self._pieces = codecs.getincrementaldecoder("utf-8")("replace")
        self.finish: FinishReason | None = None
        self.prompt_tokens = {role: len(prompt.tokens) for role, prompt in prompts.items()}
        self.context_limit = min(each.model.context_limit for each in trio.models)
        self.weights: tuple[tuple[Powers, float], ...] = ()
        self.evidence_tokens = 0
        self.prompt_seconds = 0.0
        self.generate_seconds = 0.0
        self.changed = 0

    @property
    def context(self) -> dict[str, tuple[int, int]]:
        """Tokens in the context of each model now, and how many it holds, by role."""
        return {
            each.role: (len(each.tokens), each.model.context_limit) for each in self._trio.models
        }

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Step:
        """The next step; the first one decodes the prompt.

        Raises:
            NumericalError: a model gives numbers that are not finite.
            MemoryShortage, ModelError: the backend failed.
        """
        if self.finish is not None:
            raise StopIteration
        try:
            step = self._next()
        except StopIteration:
            self.end(self._walk.finish or FinishReason.INTERRUPTED)
            raise
        except BaseException:
            self.end(FinishReason.ERROR)
            raise
        self._add(step)
        step = replace(step, piece=self._pieces.decode(step.piece_bytes, step.finish is not None))
        self.changed += step.changed
        self.tally.steps += 1
        self.tally.gated += step.gated
        self.finish = step.finish
        if step.finish is not None:
            self._trio.drop_ahead()
        return step

    @property
    def trio(self) -> Trio:
        """The models; whoever moves them himself makes no more steps here."""
        return self._trio

    def prepare(self) -> None:
        """Decodes the prompt, which the first step does where this is left out.

        Raises:
            NumericalError, MemoryShortage, ModelError: as for a step.
        """
        if self.finish is not None or self._steps is not None:
            return
        try:
            self._prefill()
        except StopIteration:
            self.end()
        except BaseException:
            self.end(FinishReason.ERROR)
            raise
        else:
            self._steps = iter(self._walk)

    def _add(self, step: Step) -> None:
        if step.thought:
            self.thoughts_bytes += step.piece_bytes
        else:
            self.text_bytes += step.piece_bytes
        if step.finish is not None:  # behind thoughts, which the last step brought
            self.text_bytes += self._walk.held

    def end(self, finish: FinishReason = FinishReason.INTERRUPTED) -> None:
        """Ends the answer where it is; an answer that has ended stays as it is."""
        if self.finish is None:
            self.text_bytes += self._walk.held
            self.finish = finish
            self._trio.drop_ahead()

    @property
    def text(self) -> str:
        """The answer so far; what is not UTF-8 is U+FFFD."""
        return self.text_bytes.decode("utf-8", "replace")

    @property
    def thoughts(self) -> str:
        """What the model wrote before the answer, between its markers."""
        return self.thoughts_bytes.decode("utf-8", "replace")

    @property
    def steps_done(self) -> int:
        """Tokens of the answer so far."""
        return self.tally.steps

    @property
    def structured(self) -> bool | None:
        """See the class."""
        return self._walk.complete

    @property
    def notices(self) -> list[str]:
        """See the class."""
        said = [*self._walk.notices]
        if self._walk.beyond:
            count = self._walk.beyond
            said.append(
                f"At {count} token{'s' * (count > 1)} the form allowed nothing that the model "
                "finds plausible, so the likeliest that it allows were taken."
            )
        models = [notice for each in self._trio.models for notice in each.notices]
        return [*dict.fromkeys(self._prompt_notices + models + said + self.tally.notices)]

    def _next(self) -> Step:
        if self._steps is None:
            self._prefill()
            self._steps = iter(self._walk)
        started = time.perf_counter()
        before = [(each.passes, each.decoded) for each in self._trio.models]
        try:
            return next(self._steps)
        finally:
            self.generate_seconds += time.perf_counter() - started
            for each, (passes, decoded) in zip(self._trio.models, before, strict=True):
                self.tally.add(each.role, each.passes - passes, each.decoded - decoded)

    def _prefill(self) -> None:
        """Decodes the prompt; StopIteration if that was cancelled."""
        started = time.perf_counter()
        try:
            evidence = prefill(self._trio, self.prompts, self._memory)
            self.evidence_tokens = evidence.seen if evidence is not None else 0
        except Cancelled:
            raise StopIteration from None
        finally:
            self.prompt_seconds = time.perf_counter() - started
        if self._trio.powers:
            self.weights = tuple(zip(self._trio.powers, self._trio.weights.tolist(), strict=True))
