"""Many requests at once: each goes its own way, and their models decode together.

Each request is ordinary code (a `Generation`) that knows nothing of the others, in a coroutine of
its own (greenlet). All run in one thread, one at a time, in an order that depends on the requests
alone; where several want the same model, it decodes for all of them in one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from capt_local.decoding.ensemble import Ensemble, EnsembleBuilder, read_by
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions, Speed
from capt_local.decoding.proxy import LogitsCache, Model, Rows
from capt_local.decoding.step import FinishReason, Step
from capt_local.decoding.structured import Constraint
from capt_local.errors import Cancelled, CaptError
from capt_local.prompting.messages import Message, Prompt
from capt_local.tokenization.vocabulary import Vocabulary

PromptOf = Callable[[str, str | Sequence[Message], bool], Prompt]
T = TypeVar("T")

# Beginnings that are shorter are not worth keeping apart.
_LEAST = 32
# Tokens before the user's text that the evidence reads once more, for their rows.
_MARGIN = 8


@dataclass(frozen=True, slots=True)
class Request:
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
class RequestResult:
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


def shared_beginning(prompt: Prompt) -> tuple[int, ...]:
    """What a prompt may have in common with others: all before the user's words.

    It is decoded by itself in any case, so that it has the same bits whoever computed it. Nothing
    else about the other prompts counts.
    """
    found: list[int] = []
    for segment in prompt.segments:
        if segment.evidence:
            break
        found += segment.tokens
    size = len(found) - _MARGIN
    return tuple(found[:size]) if size >= _LEAST else ()


class Slot:
    """One sequence of a model, for one request after the other. See `proxy.Model`.

    Args:
        role: of the model.
        number: of the slot.
        model: all its slots.
        turns: of all requests.
    """

    def __init__(self, role: str, number: int, model: BatchedModel, turns: Turns[Any]) -> None:
        """An empty slot."""
        self._role = role
        self._model = model
        self._slot = model.slots[number]
        self._turns = turns
        self._beginning: tuple[int, ...] = ()
        self._others: Sequence[Slot] = ()

    @classmethod
    def row(cls, role: str, model: BatchedModel, turns: Turns[Any], count: int) -> list[Self]:
        """The first slots of a model."""
        slots = [cls(role, number, model, turns) for number in range(count)]
        for slot in slots:
            slot._others = slots
        return slots

    def begin(self, beginning: tuple[int, ...]) -> None:
        """Empties the slot, but for a beginning: kept, taken over from a neighbour, or decoded.

        Raises:
            Cancelled, NumericalError, MemoryShortage, ModelError: as `extend`.
        """
        size = len(beginning)
        if size and self._holds(beginning) and self._slot.rewind(size):
            return
        self._beginning = ()
        self._slot.rewind(0)
        if not size:
            return
        source = next((one for one in self._others if one._holds(beginning)), None)
        if source is None or not self._model.share(source._slot, self._slot, size):
            self._slot.extend(beginning, 0)
        self._beginning = beginning

    def _holds(self, beginning: tuple[int, ...]) -> bool:
        return self._beginning == beginning and self._slot.position >= len(beginning)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.extend`; in batches of its own."""
        return self._slot.extend(tokens, rows)

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.step`; waits until the other requests want some tokens, too."""
        if len(tokens) > self._model.max_tokens_together and self.batch_floor == 0:
            return self._slot.extend(tokens, rows)
        return self._turns.step(self._role, self._slot, tokens, rows)

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.peek`."""
        return self._slot.peek(tokens, rows)

    @property
    def batch_floor(self) -> int:
        """See `Model.batch_floor`."""
        return self._slot.batch_floor

    def rewind(self, length: int) -> bool:
        """See `Model.rewind`."""
        if length < len(self._beginning):
            self._beginning = ()
        return self._slot.rewind(length)

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self._slot.vocabulary

    @property
    def context_limit(self) -> int:
        """Tokens that the slot holds."""
        return self._slot.context_limit

    @property
    def position(self) -> int:
        """Tokens in the slot now."""
        return self._slot.position

    @property
    def max_rows(self) -> int:
        """The most logit rows that one `extend` can return."""
        return self._slot.max_rows

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self._slot.size

    def price(self, count: int) -> float:
        """See `Model.price`."""
        return self._slot.price(count)

    @property
    def can_rewind(self) -> bool:
        """Whether the memory can forget a part."""
        return self._slot.can_rewind

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """See `Model.tokenize`."""
        return self._slot.tokenize(text, special=special)

    def constraint(self, grammar: str, lead: bytes) -> Constraint:
        """See `Model.constraint`."""
        return self._slot.constraint(grammar, lead)

    def close(self) -> None:
        """Nothing: all slots close together."""


class BatchedModel(Protocol):
    """Several sequences of one model, which decode together.

    Attributes:
        slots: each is a model by itself.
        max_tokens_together: so many tokens of a slot go
            along with those of others; more by themselves.
    """

    max_tokens_together: int

    @property
    def slots(self) -> Sequence[Model]:
        """See the class."""
        ...

    def share(self, source: Any, target: Any, length: int) -> bool:
        """Gives a slot the first tokens of another; False where that cannot be done."""
        ...

    def run(self, parts: Sequence[tuple[Any, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Appends tokens to slots: for each (slot, tokens, rows) its rows, or what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """What a request waits for."""

    role: str
    slot: Any
    tokens: Sequence[int]
    rows: int


class Turns(Generic[T]):
    """Runs requests side by side.

    Args:
        models: the slots of each model, by role.
        slots: how many requests run at once.
    """

    def __init__(self, models: Mapping[str, BatchedModel], slots: int) -> None:
        """Runs nothing yet."""
        self._models = dict(models)
        # The target goes last: once all the others are through, all wait for it together.
        self._order = sorted(models, key=lambda role: role == "target")
        self._free = list(range(slots))
        self._places: dict[Any, int] = {}
        self._waiting: dict[Any, _Call] = {}
        self._done: list[T] = []
        self._home: Any = None

    def results(self, jobs: Iterator[Callable[[int], T]]) -> Generator[T, None, None]:
        """Runs jobs, each at a place of its own, and yields what they return as they end.

        A new one is taken only when a place is free and all results so far have been fetched.

        Args:
            jobs: called with their place, 0 to slots - 1. What they raise ends all of them.
        """
        more = True
        try:
            while True:
                while self._free and more:
                    job = next(jobs, None)
                    more = job is not None
                    if job is not None:
                        self._start(job)
                        yield from self._ended()
                if not self._waiting:
                    return
                self._decode()
                yield from self._ended()
        finally:
            self._abandon()

    def step(self, role: str, slot: Any, tokens: Sequence[int], rows: int) -> Rows:
        """Appends tokens to a slot together with the others; called by a job, which waits."""
        answer: Rows = self._home.switch(_Call(role, slot, tokens, rows))
        return answer

    def _start(self, job: Callable[[int], T]) -> None:
        place = self._free.pop(0)
        task = greenlet(job)
        self._places[task] = place
        self._go_on(task, task.switch, place)

    def _go_on(self, task: Any, enter: Callable[..., Any], *given: Any) -> None:
        """Lets a request run until it waits or ends."""
        self._home = getcurrent()
        task.parent = self._home
        call = enter(*given)
        if not task.dead:
            self._waiting[task] = call
            return
        self._free.append(self._places.pop(task))
        self._free.sort()
        self._done.append(call)

    def _ended(self) -> Iterator[T]:
        while self._done:
            yield self._done.pop(0)

    def _decode(self) -> None:
        """One model decodes for all that wait for it, and these go on."""
        wanted = {call.role for call in self._waiting.values()}
        role = next(role for role in self._order if role in wanted)
        tasks = [task for task, call in self._waiting.items() if call.role == role]
        calls = [self._waiting[task] for task in tasks]
        answers = self._models[role].run([(call.slot, call.tokens, call.rows) for call in calls])
        for task, answer in zip(tasks, answers, strict=True):
            del self._waiting[task]
            enter = task.throw if isinstance(answer, CaptError) else task.switch
            self._go_on(task, enter, answer)

    def _abandon(self) -> None:
        """Ends what still runs, wherever it is."""
        for task in list(self._places):
            if not task.dead:
                task.parent = getcurrent()
                task.throw(GreenletExit)
        self._places.clear()
        self._waiting.clear()


class BatchScheduler:
    """Answers requests side by side.

    Args:
        models: the slots of each model, by role.
        slots: how many requests are answered at once.
        builder: of the same models, with the tables between their vocabularies.
        prompt_of: the prompt of a role for what was asked, raw or not.
        cancel: asked between steps and while prompts are computed.
    """

    def __init__(
        self,
        models: Mapping[str, BatchedModel],
        slots: int,
        builder: EnsembleBuilder,
        prompt_of: PromptOf,
        cancel: Callable[[], bool] | None,
    ) -> None:
        """Answers nothing yet."""
        self._turns: Turns[RequestResult] = Turns(models, slots)
        self._slots = {
            role: Slot.row(role, model, self._turns, slots) for role, model in models.items()
        }
        self._builder = builder
        self._prompt_of = prompt_of
        self._cancel = cancel or (lambda: False)

    def answers(self, requests: Iterable[Request]) -> Generator[RequestResult, None, None]:
        """The answers as they end. Each request is taken when there is a place for it."""
        return self._turns.results(self._jobs(requests))

    def _jobs(self, requests: Iterable[Request]) -> Iterator[Callable[[int], RequestResult]]:
        for index, request in enumerate(requests):
            yield partial(self._answer, index, request)
            if self._cancel():
                return

    def _answer(self, index: int, request: Request, place: int) -> RequestResult:
        """Answers one request at its place."""
        steps: list[Step] = []
        generation = None
        try:
            ensemble, generation = self._begin(request, place)
            self._prepare(ensemble, generation, place)
            steps.extend(generation)  # also those before an error
        except CaptError as error:
            # Where it happened is not told, and would keep the request in memory.
            return RequestResult(index, generation, tuple(steps), error.with_traceback(None))
        return RequestResult(index, generation, tuple(steps), None)

    def _begin(self, request: Request, place: int) -> tuple[Ensemble, Generation]:
        """An answer with models of its own; decodes nothing."""
        caches = {role: LogitsCache(role, slots[place]) for role, slots in self._slots.items()}
        builder = self._builder.with_caches(caches)
        options = request.options
        # Drafts would use what the others leave idle. There is nothing idle here.
        stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        ensemble = builder.build(stepwise)
        prompts = {
            each.role: self._prompt_of(
                each.role,
                *read_by(request.options.method, each.role, request.prompt, raw=request.raw),
            )
            for each in ensemble.models
        }
        notices = builder.notices(options.method)
        generation = Generation(ensemble, prompts, stepwise, self._cancel, None, notices)
        ensemble.skip_certain = options.speed is not Speed.EXACT_STEPS and not options.top
        return ensemble, generation

    def _prepare(self, ensemble: Ensemble, generation: Generation, place: int) -> None:
        """Brings the slots to what the prompts have in common with others."""
        try:
            for each in ensemble.models:
                beginning = shared_beginning(generation.prompts[each.role])
                self._slots[each.role][place].begin(beginning)
                each.tokens[:] = beginning
        except Cancelled:
            generation.end()
        except BaseException:
            generation.end(FinishReason.ERROR)
            raise
