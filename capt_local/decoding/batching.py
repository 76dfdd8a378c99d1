"""Continuous batching: many requests at once, whose tokens are decoded in common batches.

Each request is an ordinary `Generation` that knows nothing of the others, in its own coroutine
(greenlet). All run in one thread, one at a time, in an order that depends on the requests alone;
when several wait for the same model, it decodes for all of them in one batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from capt_local.decoding.ensemble import Ensemble, EnsembleBuilder, prompt_for_role
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, GenerateOptions, Step
from capt_local.decoding.prompt_weights import Memory
from capt_local.decoding.proxy import LogitsCache, Model
from capt_local.errors import Cancelled, CaptError
from capt_local.prompting.messages import Message, Prompt
from capt_local.tokenization import Rows, common_length

# Makes a prompt from (role, text or messages, raw).
PromptOf = Callable[[str, str | Sequence[Message], bool], Prompt]
# Called with the number of its slot, from 0.
Job = Callable[[int], "RequestResult"]

# Shorter common prefixes, in tokens, are not worth sharing.
_LEAST = 16
# Tokens before the user's text that are decoded again, for the logits that the evidence needs.
_MARGIN = 8


@dataclass(frozen=True, slots=True)
class Request:
    """A question, or a conversation that ends with the user's turn, and its options.

    Attributes:
        raw: continue the text as it is, without a chat template.
        on_step: called with the answer and each of its steps.
        cancel: called before each step and while the prompt is decoded; true ends this answer
            alone as interrupted.
        group: equal for consecutive requests with the same prompt, which is then decoded once; the
            result does not depend on what else runs at the same time. None: no group.
        owner: with `reuse`, KV cache contents are reused only within one owner: otherwise the time
            to decode a prompt would reveal whether another owner's text begins in the same way.
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
    """The result of a request: its finished answer, or the error that ended it.

    Attributes:
        index: of the request among all, from 0.
        generation: None if it could not be started.
    """

    index: int
    generation: Generation | None
    steps: tuple[Step, ...]
    error: CaptError | None


def shared_beginning(prompt: Prompt) -> tuple[int, ...]:
    """The prefix that a prompt may share with others: all tokens before the user's text.

    It is always decoded in batches of its own, so that its KV cache has the same bits whichever
    request computed it. It does not depend on the other prompts.
    """
    found: list[int] = []
    for segment in prompt.segments:
        if segment.evidence:
            break
        found += segment.tokens
    size = len(found) - _MARGIN
    return tuple(found[:size]) if size >= _LEAST else ()


class Slot:
    """One sequence of a batched model, used by one request at a time; a `Model`.

    Attributes:
        should_stop: of the request in this slot; see `BatchedModel`.
    """

    def __init__(self, role: str, number: int, model: BatchedModel, turns: JobScheduler) -> None:
        self._role = role
        self._model = model
        self._slot = model.slots[number]
        self._scheduler = turns
        self.should_stop: Callable[[], bool] | None = None
        self._beginning: tuple[int, ...] = ()

    def begin(self, beginning: tuple[int, ...], others: Sequence[Slot]) -> None:
        """Clears the slot except a shared prefix: kept, copied from another slot, or decoded.

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

    def copy_prefix_from(self, source: Slot, size: int) -> bool:
        """Copies the first tokens of a slot (or rewinds, if it is this one); False: failed."""
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
        """See `Model.extend`; in batches of its own, between which other requests may run."""
        size = self._model.chunk
        while len(tokens) > size:  # the batches that `Model.extend` would make
            now = min(size, len(tokens) - rows)
            self._extend(tokens[:now], 0)
            tokens = tokens[now:]
            self._scheduler.pause()
        return self._extend(tokens, rows)

    def _extend(self, tokens: Sequence[int], rows: int) -> Rows:
        self._model.should_stop = self.should_stop
        try:
            return self._slot.extend(tokens, rows)
        finally:
            self._model.should_stop = None

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """See `Model.step`; waits for the other requests, to decode in one batch with theirs."""
        if len(tokens) > self._model.max_tokens_together and self.batch_floor == 0:
            return self.extend(tokens, rows)
        return self._scheduler.step(self._role, self._slot, tokens, rows)

    def __getattr__(self, name: str) -> Any:
        """All other attributes are those of the sequence."""
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
    """Several sequences of one model, decoded in common batches.

    Attributes:
        slots: the sequences; each is a `Model`.
        max_tokens_together: up to this many tokens of a slot are batched with those of other slots;
            more get batches of their own.
        chunk: largest batch, in tokens.
        should_stop: called while long texts are decoded; true raises `Cancelled`.
    """

    max_tokens_together: int
    chunk: int
    should_stop: Callable[[], bool] | None

    @property
    def slots(self) -> Sequence[Model]:
        """See the class."""
        ...

    def share(self, source: Any, target: Any, length: int) -> bool:
        """Copies the first `length` tokens of a slot to another; False if that is impossible."""
        ...

    def pack(self, used: Iterable[Any]) -> None:
        """Moves these slots together if that makes batches cheaper; may clear the other slots."""
        ...

    def run(self, parts: Sequence[tuple[Any, Sequence[int], int]]) -> list[Rows | CaptError]:
        """Appends tokens to slots; returns for each (slot, tokens, rows) its rows or its error."""
        ...


class _Call(NamedTuple):
    """A `step` call that a request waits for."""

    role: str
    slot: Any
    tokens: Sequence[int]
    rows: int


class JobScheduler:
    """Runs jobs concurrently, one per slot, and batches their `step` calls by model."""

    def __init__(self, models: Mapping[str, BatchedModel], slots: int) -> None:
        self._models = dict(models)
        # The target decodes last: by then all requests wait for it and share its batch.
        self._order = sorted(models, key=lambda role: role == "target")
        self._slots = {role: list(model.slots) for role, model in models.items()}  # by place
        self._free = list(range(slots))
        self._places: dict[Any, int] = {}
        # None: paused between two batches of its prompt; waits for no result.
        self._waiting: dict[Any, _Call | None] = {}
        self._rounds = 0
        self._done: list[RequestResult] = []
        self._main: Any = None

    def results(self, jobs: Iterator[Job | None]) -> Generator[RequestResult, None, None]:
        """Runs jobs, each in its own slot, and yields their results as they end.

        The next job is taken when a slot is free and all results so far have been consumed. An
        exception of a job ends all of them. A job None means that none is available yet: the
        running ones continue for a step.
        """
        more = True
        try:
            while True:
                # Prompts are decoded one at a time: the next one may share a prefix.
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
                    if not more:  # free slots will not be filled again
                        for role, model in self._models.items():
                            model.pack(self._slots[role][place] for place in self._places.values())
                    self._decode()
                    yield from self._ended()
                elif not more:
                    return
        finally:
            self._abandon()

    @property
    def place(self) -> int:
        """The slot of the job that calls it."""
        return self._places[getcurrent()]

    def move(self, better: Callable[[Sequence[int]], int]) -> int:
        """Moves the calling job to the best of its own and the free slots; returns the slot."""
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
        """Appends tokens to a slot in a common batch; the calling job waits for its rows."""
        answer: Rows = self._main.switch(_Call(role, slot, tokens, rows))
        return answer

    def pause(self) -> None:
        """Lets other jobs run for about a step; called by a job that decodes a long prompt."""
        if self._waiting:
            self._main.switch(None)

    def _start(self, job: Job) -> None:
        place = self._free.pop(0)
        task = greenlet(job)
        self._places[task] = place
        self._resume(task, task.switch, place)

    def _resume(self, task: Any, enter: Callable[..., Any], *arguments: Any) -> None:
        """Runs a job until it waits or ends."""
        self._main = getcurrent()
        task.parent = self._main
        call = enter(*arguments)
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
        """Runs one model for all jobs that wait for it, then resumes them."""
        self._rounds += 1
        waiting = {task: call for task, call in self._waiting.items() if call is not None}
        if not waiting or self._rounds % len(self._models) == 0:
            for task in self._waiting.keys() - waiting.keys():
                del self._waiting[task]
                self._resume(task, task.switch)
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
            self._resume(task, enter, answer)

    def _abandon(self) -> None:
        """Ends all jobs that still run."""
        for task in list(self._places):
            if not task.dead:
                task.parent = getcurrent()
                task.throw(GreenletExit)
        self._places.clear()
        self._waiting.clear()


class _GroupPrompt(NamedTuple):
    """The prompt that the last request of a group has decoded, and its evidence for the weights.

    `texts` are the tokens, by role, that the next request of the group copies from its slot. It
    decodes the rest itself, so that its result does not depend on its slot and time.
    """

    group: object
    place: int
    texts: Mapping[str, Sequence[int]]
    memory: Memory


class BatchScheduler:
    """Answers several requests at once.

    Args:
        models: the batched models, by role.
        slots: number of requests answered at once.
        builder: of ensembles of the same models.
        prompt_of: see `PromptOf`.
        cancel: called between steps and while prompts are decoded; true stops all requests.
        reuse: whether a prompt reuses a common prefix left in a slot by an earlier or running
            request. The last bits of logits then depend on that request, as they do in
            `Runtime.generate`.
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
        self._scheduler = JobScheduler(models, slots)
        self._slots = {
            role: [Slot(role, number, model, self._scheduler) for number in range(slots)]
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
        self._group: _GroupPrompt | None = None
        # Places in the order in which they were last used.
        self._oldest = deque(range(slots))

    def answers(self, requests: Iterable[Request | None]) -> Generator[RequestResult, None, None]:
        """Yields the answers as they end. A request is taken when a slot is free for it.

        A request None means that none is available yet; the iterator may block while none runs.
        """
        return self._scheduler.results(self._jobs(requests))

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
            # The traceback is not reported, and would keep the request in memory.
            return RequestResult(index, generation, tuple(steps), error.with_traceback(None))
        finally:
            self._watch(self._scheduler.place, None)
        return RequestResult(index, generation, tuple(steps), None)

    def _watch(self, place: int, cancel: Callable[[], bool] | None) -> None:
        for slots in self._slots.values():
            slots[place].should_stop = cancel

    def _begin(self, request: Request, place: int) -> Generation:
        """Starts the answer in its slot, whose models then hold the prompt's shared prefix."""
        options, own = request.options, request.cancel

        def cancel() -> bool:
            return self._cancel() or (own is not None and own())

        caches = self._kept[place] if self._kept else self._new_caches(place)
        ensemble = self._builder.build(options, caches)
        prompts = {
            each.role: self._prompt_of(
                each.role,
                *prompt_for_role(options.method, each.role, request.prompt, raw=request.raw),
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
        # Drafts pay by using idle compute, and with several requests there is none.
        generation = Generation(ensemble, prompts, options, cancel, memory, notices, drafts=False)
        if not self._kept:
            self._prepare(ensemble, generation, place, earlier)
            if memory is not None:
                texts = {ensemble.leader.role: ensemble.tokens[:-1]}
                for proxy in ensemble.proxies:
                    # Later tokens may be rewound and decoded again for token healing.
                    size = min(proxy.stable, len(proxy.tokens)) - proxy.depth - 1
                    texts[proxy.cache.role] = proxy.tokens[: max(0, size)]
                self._group = _GroupPrompt(request.group, place, texts, memory)
        return generation

    def _new_caches(self, place: int) -> dict[str, LogitsCache]:
        return {role: LogitsCache(role, slots[place]) for role, slots in self._slots.items()}

    def _best_place(
        self, prompts: Mapping[str, Prompt], options: GenerateOptions, owner: object
    ) -> int:
        """Moves the request to the free slot with the longest prefix of its prompt.

        Without one: to the slot unused for longest. A longer prefix is copied from other slots.
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

        place = self._scheduler.move(best)
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
                    if slots[place].copy_prefix_from(slots[source], size):
                        cache.tokens[:] = own[:size]
        for cache in self._kept[place].values():
            cache.notices.clear()
        return place

    def _prepare(
        self,
        ensemble: Ensemble,
        generation: Generation,
        place: int,
        earlier: _GroupPrompt | None,
    ) -> None:
        """Fills the slots with the prefixes that the prompts share with others."""
        try:
            for each in ensemble.models:
                slots = self._slots[each.role]
                if earlier is not None and (text := earlier.texts[each.role]):
                    source = slots[earlier.place]
                    if source.position >= len(text) and slots[place].copy_prefix_from(
                        source, len(text)
                    ):
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
