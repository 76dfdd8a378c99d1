"""Answers to many requests, on lanes of the models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial

from capt_local.decoding.assembly import Assembly
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.generation import Generation
from capt_local.decoding.many.asks import Answered, Ask
from capt_local.decoding.many.seat import Seat, shared_beginning
from capt_local.decoding.many.turns import Together, Turns
from capt_local.decoding.options import Speed
from capt_local.decoding.step import FinishReason, Step
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled, CaptError
from capt_local.prompting.messages import Message, Prompt

PromptOf = Callable[[str, str | Sequence[Message], bool], Prompt]


class Table:
    """Answers requests side by side.

    Args:
        models: the lanes of each model, by role.
        places: how many requests are answered at once.
        assembly: of the same models, with the tables between their vocabularies.
        prompt_of: the prompt of a role for what was asked, raw or not.
        cancel: asked between steps and while prompts are computed.
    """

    def __init__(
        self,
        models: Mapping[str, Together],
        places: int,
        assembly: Assembly,
        prompt_of: PromptOf,
        cancel: Callable[[], bool] | None,
    ) -> None:
        """Answers nothing yet."""
        self._turns: Turns[Answered] = Turns(models, places)
        self._seats = {
            role: Seat.row(role, lanes, self._turns, places) for role, lanes in models.items()
        }
        self._assembly = assembly
        self._prompt_of = prompt_of
        self._cancel = cancel or (lambda: False)

    def answers(self, asks: Iterable[Ask]) -> Generator[Answered, None, None]:
        """The answers as they end. Each ask is taken when there is a place for it."""
        return self._turns.results(self._jobs(asks))

    def _jobs(self, asks: Iterable[Ask]) -> Iterator[Callable[[int], Answered]]:
        for index, ask in enumerate(asks):
            yield partial(self._answer, index, ask)
            if self._cancel():
                return

    def _answer(self, index: int, ask: Ask, place: int) -> Answered:
        """Answers one request at its place."""
        steps: list[Step] = []
        generation = None
        try:
            trio, generation = self._begin(ask, place)
            self._prepare(trio, generation, place)
            steps.extend(generation)  # also those before an error
        except CaptError as error:
            # Where it happened is not told, and would keep the request in memory.
            return Answered(index, generation, tuple(steps), error.with_traceback(None))
        return Answered(index, generation, tuple(steps), None)

    def _begin(self, ask: Ask, place: int) -> tuple[Trio, Generation]:
        """An answer with models of its own; decodes nothing."""
        cached = {role: CachedModel(role, seats[place]) for role, seats in self._seats.items()}
        assembly = self._assembly.beside(cached)
        options = ask.options
        # Drafts would use what the others leave idle. There is nothing idle here.
        stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        trio = assembly.trio(stepwise)
        prompts = {
            each.role: self._prompt_of(each.role, ask.prompt, ask.raw) for each in trio.models
        }
        notices = assembly.notices(options.method)
        generation = Generation(trio, prompts, stepwise, self._cancel, None, notices)
        trio.gates = options.speed is not Speed.EXACT_STEPS and not options.top
        return trio, generation

    def _prepare(self, trio: Trio, generation: Generation, place: int) -> None:
        """Brings the lanes to what the prompts have in common with others."""
        try:
            for each in trio.models:
                beginning = shared_beginning(generation.prompts[each.role])
                self._seats[each.role][place].begin(beginning)
                each.tokens[:] = beginning
        except Cancelled:
            generation.end()
        except BaseException:
            generation.end(FinishReason.ERROR)
            raise
