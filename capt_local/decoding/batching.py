"""Many requests at once: each goes its own way, and their models decode together.

Each request is ordinary code (a `Generation`) that knows nothing of the others, in a coroutine of
its own (greenlet). All run in one thread, one at a time, in an order that depends on the requests
alone; where several want the same model, it decodes for all of them in one batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from capt_local.decoding.ensemble import Ensemble, EnsembleBuilder, read_by
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, GenerateOptions, Step
from capt_local.decoding.prompt_weights import Memory
from capt_local.decoding.proxy import LogitsCache, Model
from capt_local.errors import Cancelled, CaptError
from capt_local.prompting.messages import Message, Prompt
from capt_local.tokenization import Rows, common_length

# The prompt of a role for what was asked, raw or not.
PromptOf = Callable[[str, str | Sequence[Message], bool], Prompt]
# Called with its place, from 0.
Job = Callable[[int], "RequestResult"]

# Beginnings that are shorter are not worth keeping apart.
_LEAST = 16
# Tokens before the user's text that the evidence reads once more, for their rows.
_MARGIN = 8


@dataclass(frozen=True, slots=True)
class Request:
    """One question, or a conversation that ends with the user's turn, and how it is answered.

    Attributes:
        raw: goes on with the text as it is, without a template.
        on_step: called with each step as it is made, and the answer that it belongs to.
        cancel: called before each step and while the prompt is computed; true ends this answer
            alone as interrupted.
        group: of requests with the same prompt, one behind the other: the prompt is read once. What
            else runs at the same time makes no difference to them either. None: of no group.
        owner: with `reuse`, only what requests of the same owner have left is gone on with: how
            much is read anew, and how soon, would tell others how an owner's text began.
    """

    prompt: str | Sequence[Message]
    options: GenerateOptions
    raw: bool = False
    on_step: Callable[[Generation, Step], None] | None = None
    cancel: Callable[[], bool] | None = None
    group: object = None
    owner: object = None


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What became of a request: its answer, which has ended, or what ended it before its time.

    Attributes:
        index: its place among all, from 0.
        generation: None where it could not begin.
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
    """One sequence of a model, for one request after the other; a `Model`.

    Attributes:
        should_stop: of the request that has the slot; see `BatchedModel`.
    """

    def __init__(self, role: str, number: int, model: BatchedModel, turns: Turns) -> None:
        self._role = role
        self._model = model
        self._slot = model.slots[number]
        self._turns = turns
        self.should_stop: Callable[[], bool] | None = None
        self._beginning: tuple[int, ...] = ()

    def begin(self, beginning: tuple[int, ...], others: Sequence[Slot]) -> None:
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
        source = next((one for one in others if one._holds(beginning)), None)
        if source is None or not self._model.share(source._slot, self._slot, size):
            self.extend(beginning, 0)
        self._beginning = beginning

    def take_over(self, source: Slot, size: int) -> bool:
        """Holds the first tokens of a slot, or of this one; False where that cannot be done."""
        if source is self:
            return self.rewind(size)
        self._beginning = ()
        if not self._model.share(source._slot, self._slot, size):
            return False
        if len(source._beginning) <= size:
            self._beginning = source._beginning
        return True

    def _holds(self, beginning: tuple[int, ...]) -> bool:
        return self._beginning == beginning and self._slot.position >= len(beginning)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.extend`; in batches of its own, between which other requests go on."""
        size = self._model.chunk
        while len(tokens) > size:  # in the batches that the model would make of it
            now = min(size, len(tokens) - rows)
            self._extend(tokens[:now], 0)
            tokens = tokens[now:]
            self._turns.pause()
        return self._extend(tokens, rows)

    def _extend(self, tokens: Sequence[int], rows: int) -> Rows:
        self._model.should_stop = self.should_stop
        try:
            return self._slot.extend(tokens, rows)
        finally:
            self._model.should_stop = None

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.step`; waits until the other requests want some tokens, too."""
        if len(tokens) > self._model.max_tokens_together and self.batch_floor == 0:
            return self.extend(tokens, rows)
        return self._turns.step(self._role, self._slot, tokens, rows)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the sequence's own."""
        return getattr(self._slot, name)

    def rewind(self, length: int) -> bool:
        """See `Model.rewind`."""
        if length < len(self._beginning):
            self._beginning = ()
        return self._slot.rewind(length)

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """See `Model.set_adapter_scales`."""
        before = self.adapter_scales
        self._slot.set_adapter_scales(scales)
        if self.adapter_scales != before:
            self._beginning = ()


class BatchedModel(Protocol):
    """Several sequences of one model, which decode together.

    Attributes:
        slots: each is a model by itself.
        max_tokens_together: so many tokens of a slot go along with those of others; more by
            themselves.
        chunk: so many tokens go into one batch.
        should_stop: called while long texts are computed; true ends that with `Cancelled`.
    """

    max_tokens_together: int
    chunk: int
    should_stop: Callable[[], bool] | None

    @property
    def slots(self) -> Sequence[Model]:
        """See the class."""
        ...

    def share(self, source: Any, target: Any, length: int) -> bool:
        """Gives a slot the first tokens of another; False where that cannot be done."""
        ...

    def pack(self, used: Iterable[Any]) -> None:
        """Makes batches of these slots as cheap as it can; what others held may be lost."""
        ...

    def run(self, parts: Sequence[tuple[Any, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Appends tokens to slots: for each (slot, tokens, rows) its rows, or what went wrong."""
        ...


class _Call(NamedTuple):
    """What a request waits for."""

    role: str
    slot: Any
    tokens: Sequence[int]
    rows: int


class Turns:
    """Runs so many requests side by side on models by role."""

    def __init__(self, models: Mapping[str, BatchedModel], slots: int) -> None:
        self._models = dict(models)
        # The target goes last: once all the others are through, all wait for it together.
        self._order = sorted(models, key=lambda role: role == "target")
        self._lanes = {role: list(model.slots) for role, model in models.items()}  # by place
        self._free = list(range(slots))
        self._places: dict[Any, int] = {}
        # None: has read a part of its prompt, and waits for nothing.
        self._waiting: dict[Any, _Call | None] = {}
        self._rounds = 0
        self._done: list[RequestResult] = []
        self._home: Any = None

    def results(self, jobs: Iterator[Job | None]) -> Generator[RequestResult, None, None]:
        """Runs jobs, each at a place of its own, and yields what they return as they end.

        A new one is taken only when a place is free and all results so far have been fetched.
        What a job raises ends all of them. None: there is none for now, so those that run go on
        for a step.
        """
        more = True
        try:
            while True:
                # One prompt at a time is read: the next one may share a part of it.
                while self._free and more and None not in self._waiting.values():
                    try:
                        job = next(jobs)
                    except StopIteration:
                        more = False
                        break
                    if job is None:
                        break
                    self._start(job)
                    yield from self._ended()
                if self._waiting:
                    if not more:  # nobody fills the places that are free
                        for role, model in self._models.items():
                            model.pack(self._lanes[role][place] for place in self._places.values())
                    self._decode()
                    yield from self._ended()
                elif not more:
                    return
        finally:
            self._abandon()

    @property
    def place(self) -> int:
        """Of the job that calls it."""
        return self._places[getcurrent()]

    def move(self, better: Callable[[Sequence[int]], int]) -> int:
        """Gives the job that calls it the best place of the free ones and its own; returns it."""
        task = getcurrent()
        own = self._places[task]
        chosen = better(sorted((own, *self._free)))
        if chosen != own:
            self._free.remove(chosen)
            self._free.append(own)
            self._free.sort()
            self._places[task] = chosen
        return chosen

    def step(self, role: str, slot: Any, tokens: Sequence[int], rows: int) -> Rows:
        """Appends tokens to a slot together with the others; called by a job, which waits."""
        answer: Rows = self._home.switch(_Call(role, slot, tokens, rows))
        return answer

    def pause(self) -> None:
        """Lets the others go on for about a step; called by a job that reads a long prompt."""
        if self._waiting:
            self._home.switch(None)

    def _start(self, job: Job) -> None:
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

    def _ended(self) -> Iterator[RequestResult]:
        while self._done:
            yield self._done.pop(0)

    def _decode(self) -> None:
        """One model decodes for all that wait for it, and these go on."""
        self._rounds += 1
        waiting = {task: call for task, call in self._waiting.items() if call is not None}
        if not waiting or self._rounds % len(self._models) == 0:
            for task in self._waiting.keys() - waiting.keys():
                del self._waiting[task]
                self._go_on(task, task.switch)
        if not waiting:
            return
        wanted = {call.role for call in waiting.values()}
        role = next(role for role in self._order if role in wanted)
        tasks = [task for task, call in waiting.items() if call.role == role]
        calls = [waiting[task] for task in tasks]
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


class _PromptOfGroup(NamedTuple):
    """The prompt that the last request of a group has read, and what it showed about the weights.

    `texts` are the tokens, by role, that the next of the group takes over from its place. It reads
    the rest itself, so that it has the same bits, wherever and whenever it begins.
    """

    group: object
    place: int
    texts: Mapping[str, Sequence[int]]
    memory: Memory


class BatchScheduler:
    """Answers requests side by side.

    Args:
        models: the slots of each model, by role.
        slots: how many requests are answered at once.
        builder: of the same models, with the tables between their vocabularies.
        prompt_of: see `PromptOf`.
        cancel: asked between steps and while prompts are computed.
        reuse: whether a prompt begins with what an earlier or a running request has left in a
            slot. The last bits of its answer then depend on what that was, as those of
            `Runtime.generate` do.
    """

    def __init__(
        self,
        models: Mapping[str, BatchedModel],
        slots: int,
        builder: EnsembleBuilder,
        prompt_of: PromptOf,
        cancel: Callable[[], bool] | None,
        *,
        reuse: bool = False,
    ) -> None:
        self._turns = Turns(models, slots)
        self._slots = {
            role: [Slot(role, number, model, self._turns) for number in range(slots)]
            for role, model in models.items()
        }
        self._scales: dict[str, tuple[float, ...]] = {}
        for role, row in self._slots.items():
            for slot in row:
                slot.set_adapter_scales(None)  # an earlier run may have left others
            self._scales[role] = row[0].adapter_scales
        self._builder = builder
        self._prompt_of = prompt_of
        self._cancel = cancel or (lambda: False)
        self._kept = [self._new_caches(place) for place in range(slots)] if reuse else []
        self._memories = [Memory() for _ in self._kept]
        self._owners: list[object] = [None] * slots  # whose text is at each place
        self._group: _PromptOfGroup | None = None
        # Places in the order in which they were last used.
        self._oldest = deque(range(slots))

    def answers(self, requests: Iterable[Request | None]) -> Generator[RequestResult, None, None]:
        """The answers as they end. Each request is taken when there is a place for it.

        None among the requests: there is none for now. Where nothing runs, the iterator may wait.
        """
        return self._turns.results(self._jobs(requests))

    def _jobs(self, requests: Iterable[Request | None]) -> Iterator[Job | None]:
        index = 0
        for request in requests:
            yield None if request is None else partial(self._answer, index, request)
            index += request is not None
            if self._cancel():
                return

    def _answer(self, index: int, request: Request, place: int) -> RequestResult:
        steps: list[Step] = []
        generation = None
        try:
            generation = self._begin(request, place)
            for step in generation:
                steps.append(step)  # also those before an error
                if request.on_step is not None:
                    request.on_step(generation, step)
        except CaptError as error:
            # Where it happened is not told, and would keep the request in memory.
            return RequestResult(index, generation, tuple(steps), error.with_traceback(None))
        finally:
            self._watch(self._turns.place, None)
        return RequestResult(index, generation, tuple(steps), None)

    def _watch(self, place: int, cancel: Callable[[], bool] | None) -> None:
        for slots in self._slots.values():
            slots[place].should_stop = cancel

    def _begin(self, request: Request, place: int) -> Generation:
        """An answer with models of its own, which hold what its prompt shares with others."""
        options, own = request.options, request.cancel

        def cancel() -> bool:
            return self._cancel() or (own is not None and own())

        caches = self._kept[place] if self._kept else self._new_caches(place)
        ensemble = self._builder.build(options, caches)
        prompts = {
            each.role: self._prompt_of(
                each.role, *read_by(options.method, each.role, request.prompt, raw=request.raw)
            )
            for each in ensemble.models
        }
        earlier = None
        if request.group is not None and self._group and self._group.group == request.group:
            earlier = self._group
        memory = earlier.memory if earlier else None if request.group is None else Memory()
        if self._kept:
            place = self._best_place(prompts, options, request.owner)
            memory = self._memories[place]
            ensemble = self._builder.build(options, self._kept[place])
        for each in ensemble.models:
            each.set_adapter_scales(options.scales_of(each.role))
        self._watch(place, cancel)
        notices = self._builder.notices(options.method)
        # Drafts would use what the others leave idle. There is nothing idle here.
        generation = Generation(ensemble, prompts, options, cancel, memory, notices, drafts=False)
        if not self._kept:
            self._prepare(ensemble, generation, place, earlier)
            if memory is not None:
                texts = {ensemble.leader.role: ensemble.tokens[:-1]}
                for proxy in ensemble.proxies:
                    # What is behind may be read again for healing, and be missing for a moment.
                    size = min(proxy.stable, len(proxy.tokens)) - proxy.depth - 1
                    texts[proxy.cache.role] = proxy.tokens[: max(0, size)]
                self._group = _PromptOfGroup(request.group, place, texts, memory)
        return generation

    def _new_caches(self, place: int) -> dict[str, LogitsCache]:
        return {role: LogitsCache(role, slots[place]) for role, slots in self._slots.items()}

    def _best_place(
        self, prompts: Mapping[str, Prompt], options: GenerateOptions, owner: object
    ) -> int:
        """Moves the request to where most of its prompt has been read; takes over what others have.

        Where nobody has read any, that is the place whose text is the oldest.
        """
        tokens = {role: list(prompt.tokens) for role, prompt in prompts.items()}

        def shared(place: int) -> int:
            caches = self._kept[place]
            if self._owners[place] != owner:
                return 0
            return sum(
                common_length(caches[role].tokens, own)
                for role, own in tokens.items()
                if caches[role].model.adapter_scales
                == (options.scales_of(role) or self._scales[role])
            )

        def best(free: Sequence[int]) -> int:
            return max(free, key=lambda place: (shared(place), -self._oldest.index(place)))

        place = self._turns.move(best)
        if self._owners[place] != owner:
            self._owners[place], self._memories[place] = owner, Memory()
            for cache in self._kept[place].values():
                cache.clear()
        for role in tokens:
            self._kept[place][role].set_adapter_scales(options.scales_of(role))
        self._oldest.remove(place)
        self._oldest.append(place)
        source = max(range(len(self._kept)), key=shared)
        if shared(source) >= shared(place) + _LEAST:
            self._memories[place] = copy.copy(self._memories[source])
            for role, own in tokens.items():
                theirs, cache = self._kept[source][role], self._kept[place][role]
                size = common_length(theirs.tokens, own)
                if size > common_length(cache.tokens, own):
                    cache.clear()
                    slots = self._slots[role]
                    if slots[place].take_over(slots[source], size):
                        cache.tokens[:] = own[:size]
        for cache in self._kept[place].values():
            cache.notices.clear()
        return place

    def _prepare(
        self,
        ensemble: Ensemble,
        generation: Generation,
        place: int,
        earlier: _PromptOfGroup | None,
    ) -> None:
        """Brings the slots to what the prompts have in common with others."""
        try:
            for each in ensemble.models:
                slots = self._slots[each.role]
                if earlier is not None and (text := earlier.texts[each.role]):
                    source = slots[earlier.place]
                    if source.position >= len(text) and slots[place].take_over(source, len(text)):
                        each.tokens[:] = text
                        continue
                beginning = shared_beginning(generation.prompts[each.role])
                slots[place].begin(beginning, slots)
                each.tokens[:] = beginning
        except Cancelled:
            generation.end()
        except BaseException:
            generation.end(FinishReason.ERROR)
            raise
