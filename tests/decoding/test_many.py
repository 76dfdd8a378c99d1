"""Requests side by side: each answer is the one that the request gets alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from capt_local.decoding.batching import BatchScheduler, Request, RequestResult, shared_beginning
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import (
    CombineOptions,
    FinishReason,
    GenerateOptions,
    Method,
    SampleOptions,
    Speed,
    Step,
)
from capt_local.errors import CaptError, ContextOverflow, NumericalError, UsageError
from capt_local.prompting.messages import Message, Prompt, Segment
from tests.decoding.trios import PROXY, TARGET, assembly
from tests.fakes import FakeModel, text_tokenizer

SEEDS = {"target": 1, "expert": 2, "base": 3}
VOCABULARIES = {"target": TARGET, "expert": PROXY, "base": PROXY}
TEXTS = ["abc the card", "the cardiac a", "ab ab", "a card the", "card card card", "the the", "b"]
PLAIN = GenerateOptions(max_tokens=9, speed=Speed.EXACT_STEPS)


class FakeLanes:
    """BatchedContext that are models of their own, and keep a record of who decoded with whom."""

    max_tokens_together = 4
    chunk = 1000
    should_stop: Callable[[], bool] | None = None

    def __init__(self, role: str, count: int, **kinds: Any) -> None:
        made = [FakeModel(VOCABULARIES[role], SEEDS[role], **kinds) for _ in range(count)]
        self.slots: Sequence[FakeModel] = made
        self.batches: list[list[int]] = []
        self.shared: list[tuple[int, int, int]] = []
        self.packed: list[list[int]] = []
        self.fails: Callable[[int, Sequence[int]], BaseException | None] = lambda slot, new: None

    def run(self, parts: Sequence[tuple[Any, Sequence[int], int]]) -> list[Any]:
        numbers = [self.slots.index(slot) for slot, _, _ in parts]
        assert len(set(numbers)) == len(numbers)
        assert all(len(tokens) <= self.max_tokens_together for _, tokens, _ in parts)
        self.batches.append(numbers)
        results: list[Any] = []
        for number, (slot, tokens, rows) in zip(numbers, parts, strict=True):
            error = self.fails(number, tokens)
            if error is not None and not isinstance(error, CaptError):
                raise error
            results.append(error if error is not None else slot.extend(tokens, rows))
        return results

    def pack(self, used: Iterable[FakeModel]) -> None:
        self.packed.append(sorted(map(self.slots.index, used)))

    def share(self, source: FakeModel, target: FakeModel, length: int) -> bool:
        if not target.can_rewind:
            return False
        target.tokens = source.tokens[:length]
        self.shared.append((self.slots.index(source), self.slots.index(target), length))
        return True


def prompt_of(role: str, asked: str | Sequence[Message], raw: bool) -> Prompt:
    """A turn behind BOS; a conversation has a system text in front."""
    tokenizer = text_tokenizer(FakeModel(VOCABULARIES[role], 0))
    said = asked if isinstance(asked, str) else asked[-1].content
    if not said:
        raise UsageError("The prompt is empty.")
    system = b"" if isinstance(asked, str) else asked[0].content.encode()
    head = (0, *(tokenizer.encode(system, start=True) if system else ()))
    text = said.encode()
    user = Segment(tuple(tokenizer.encode(text, start=True)), text, evidence=True)
    return Prompt((Segment(head), user), continues_text=raw)


class Desk:
    """BatchedContext of three models, and the requests that go to them."""

    def __init__(self, places: int = 3, **kinds: Any) -> None:
        self.models = {role: FakeLanes(role, places, **kinds) for role in SEEDS}
        self.places = places
        self.kinds = kinds

    def answers(
        self,
        asks: Iterator[Request | None] | Sequence[Request],
        cancel: Callable[[], bool] | None = None,
        *,
        reuse: bool = False,
    ) -> Any:
        together = assembly({role: slots.slots[0] for role, slots in self.models.items()})
        desk = BatchScheduler(self.models, self.places, together, prompt_of, cancel, reuse=reuse)
        return desk.answers(asks)

    def alone(self, ask: Request) -> Generation:
        """The answer of models that nobody else has used."""
        models = {role: FakeModel(VOCABULARIES[role], SEEDS[role], **self.kinds) for role in SEEDS}
        trio = assembly(models).build(ask.options)
        prompts = {each.role: prompt_of(each.role, ask.prompt, ask.raw) for each in trio.models}
        return Generation(trio, prompts, ask.options, None)


def as_alone(found: Mapping[int, RequestResult], asks: Sequence[Request]) -> None:
    """All that answered have the steps of their requests alone."""
    for index, each in found.items():
        if each.error is None:
            assert list(each.steps) == list(Desk().alone(asks[index]))


def check(desk: Desk, asks: Sequence[Request]) -> dict[int, RequestResult]:
    """All are answered, each as alone."""
    found = {each.index: each for each in desk.answers(asks)}
    assert sorted(found) == list(range(len(asks)))
    for index, ask in enumerate(asks):
        one, alone = found[index], desk.alone(ask)
        assert one.error is None and one.generation is not None
        assert list(one.steps) == list(alone)
        for name in ("text", "thoughts", "finish", "changed", "prompt_tokens", "weights"):
            assert getattr(one.generation, name) == getattr(alone, name), name
        assert one.generation.notices == alone.notices
    return found


def test_each_request_has_its_own_options() -> None:
    warm = SampleOptions(temperature=1.0, seed=4)
    asks = [
        Request(TEXTS[0], dataclasses.replace(PLAIN, sample=warm)),
        Request(TEXTS[0], dataclasses.replace(PLAIN, sample=dataclasses.replace(warm, seed=5))),
        Request(TEXTS[1], dataclasses.replace(PLAIN, method=Method.TARGET, max_tokens=3)),
        Request(
            TEXTS[1], dataclasses.replace(PLAIN, combine=CombineOptions(alphas=(1.0,))), raw=True
        ),
        Request(TEXTS[2], dataclasses.replace(PLAIN, method=Method.EXPERT_LED, top=3)),
        Request(TEXTS[3], dataclasses.replace(PLAIN, stop=("a",), max_tokens=40)),
        Request(TEXTS[4], dataclasses.replace(PLAIN, method=Method.CAPT_PAPER)),
    ]
    found = check(Desk(), asks)
    assert found[0].steps != found[1].steps


def test_what_does_not_matter_is_left_out_here_too() -> None:
    options = GenerateOptions(
        max_tokens=30, combine=CombineOptions(alphas=(1.0,), plausibility=0.5)
    )
    found = {each.index: each for each in Desk().answers([Request(t, options) for t in TEXTS])}
    gated = 0
    for index, text in enumerate(TEXTS):
        steps = found[index].steps
        exact = Desk().alone(Request(text, dataclasses.replace(options, speed=Speed.EXACT_STEPS)))
        assert [step.token for step in steps] == [step.token for step in exact]
        gated += sum(step.proxies_skipped for step in steps)
    assert gated


def test_requests_decode_together_though_they_begin_at_different_times() -> None:
    desk = Desk(places=4)
    lengths = [3, 9, 5, 9, 9, 9, 2, 9]
    asks = [Request("abc", dataclasses.replace(PLAIN, max_tokens=n)) for n in lengths]
    check(desk, asks)
    for slots in desk.models.values():
        batches = [len(batch) for batch in slots.batches]
        # As few as there can be: whoever is there takes part each time.
        assert sum(n == 4 for n in batches) > len(batches) / 2, batches
        # Once nobody takes the free places, those who still run move together.
        assert len(slots.packed[0]) > len(slots.packed[-1]) == 1


def test_asks_are_taken_one_by_one_and_answers_come_as_they_end() -> None:
    taken: list[int] = []
    fetched: list[int] = []

    def asks() -> Iterator[Request]:
        for number in range(6):
            assert len(fetched) >= number - 1  # no more than there are places for
            taken.append(number)
            yield Request("abc", dataclasses.replace(PLAIN, max_tokens=9 - number))

    for each in Desk(places=2).answers(asks()):
        fetched.append(each.index)
        assert len(taken) <= len(fetched) + 1
    assert fetched != sorted(fetched) and sorted(fetched) == list(range(6))


@pytest.mark.parametrize("role", list(SEEDS))
def test_one_request_that_fails_ends_alone(role: str) -> None:
    desk = Desk()
    slots = desk.models[role]

    def fails(slot: int, new: Sequence[int]) -> CaptError | None:
        bad = slot == 1 and slots.slots[1].position > 10
        return NumericalError("not numbers") if bad else None

    slots.fails = fails
    asks = [Request(text, PLAIN) for text in TEXTS]
    found = {each.index: each for each in desk.answers(asks)}
    failed = [each for each in found.values() if each.error is not None]
    assert failed and len(failed) < len(asks)
    for each in failed:
        assert isinstance(each.error, NumericalError)
        assert each.generation is not None and each.generation.finish is FinishReason.ERROR
        assert each.error.__traceback__ is None
        assert list(each.steps) == list(desk.alone(asks[each.index]))[: len(each.steps)]
    as_alone(found, asks)


def test_requests_that_cannot_begin_are_told_one_by_one() -> None:
    asks = [
        Request("abc", PLAIN),
        Request("abc " * 300, PLAIN),
        Request("", PLAIN),
        Request("abc", dataclasses.replace(PLAIN, combine=CombineOptions(alphas=(1.0, 2.0)))),
        Request("ab", PLAIN),
    ]
    found = {each.index: each for each in Desk(places=2).answers(asks)}
    assert [type(found[index].error) for index in range(5)] == [
        type(None), ContextOverflow, UsageError, UsageError, type(None),
    ]  # fmt: skip
    assert all(found[index].generation is None for index in (1, 2, 3))
    as_alone(found, asks)


def test_cancelling_ends_all_with_what_they_have() -> None:
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 25

    asks = [Request(text, PLAIN) for text in TEXTS]
    desk = Desk()
    found = list(desk.answers(asks, cancel))
    assert len(found) < len(TEXTS)
    ended = [each.generation.finish for each in found if each.generation is not None]
    assert FinishReason.INTERRUPTED in ended
    for each in found:
        assert each.error is None
        assert list(each.steps) == list(desk.alone(asks[each.index]))[: len(each.steps)]


def test_an_iterator_that_is_closed_leaves_nothing_behind() -> None:
    desk = Desk()
    taken = []

    def asks() -> Iterator[Request]:
        for text in TEXTS:
            taken.append(text)
            yield Request(text, PLAIN)

    answers = desk.answers(asks())
    next(answers)
    answers.close()
    assert len(taken) <= 4
    check(desk, [Request(text, PLAIN) for text in TEXTS])  # the same slots again


SYSTEM = "the card the cardiac a abc " * 6


def test_what_prompts_have_in_common_is_computed_once() -> None:
    desk = Desk(places=3)
    asks = [Request([Message("system", SYSTEM), Message("user", t)], PLAIN) for t in TEXTS]
    found = {each.index: each for each in desk.answers(asks)}
    for role, slots in desk.models.items():
        size = len(shared_beginning(prompt_of(role, asks[0].prompt, False)))
        assert size > 32
        assert [pair[2] for pair in slots.shared] == [size] * 2
        decoded = sum(slot.extended for slot in slots.slots)
        assert decoded < size + len(TEXTS) * 40
    as_alone(found, asks)


def test_a_beginning_ends_before_the_words_of_the_user() -> None:
    head, said = Segment(tuple(range(100))), Segment((7, 8), b"xy", evidence=True)
    assert shared_beginning(Prompt((head, said, head))) == tuple(range(92))
    assert shared_beginning(Prompt((said, head))) == ()
    assert shared_beginning(Prompt((Segment(tuple(range(20))), said))) == ()


def test_models_that_cannot_go_back_answer_the_same() -> None:
    asks = [Request([Message("system", SYSTEM), Message("user", t)], PLAIN) for t in TEXTS]
    desk = Desk(places=2, can_rewind=False)
    as_alone({each.index: each for each in desk.answers(asks)}, asks)


def test_requests_join_and_leave_at_any_step() -> None:
    desk, seen = Desk(2), list[str]()
    waiting = [Request(TEXTS[0], PLAIN, on_step=lambda made, step: seen.append("first"))]

    def arriving() -> Iterator[Request | None]:
        while len(seen) < 20:
            if waiting:
                yield waiting.pop()
            elif len(seen) == 3:  # joins while the other one runs, and leaves after two steps
                own = list[int]()

                def note(made: Generation, step: Step, own: list[int] = own) -> None:
                    own.append(step.index)
                    seen.append("second")

                yield Request(TEXTS[1], PLAIN, on_step=note, cancel=lambda own=own: len(own) == 2)
            elif "first" in seen and seen.count("first") == PLAIN.max_tokens:
                return
            else:
                yield None

    found = {each.index: each for each in desk.answers(arriving())}
    assert list(found[0].steps) == list(desk.alone(Request(TEXTS[0], PLAIN)))
    assert found[1].generation is not None
    assert found[1].generation.finish is FinishReason.INTERRUPTED
    assert list(found[1].steps) == list(desk.alone(Request(TEXTS[1], PLAIN)))[:2]
    assert seen[3:7] == ["second", "first", "second", "first"]


@pytest.mark.parametrize("mixed", [True, False])
def test_what_was_read_before_is_not_read_again(mixed: bool) -> None:
    options = PLAIN
    if not mixed:
        options = dataclasses.replace(PLAIN, combine=CombineOptions(alphas=(0.5,)))
    desk = Desk(2)
    note = "abc the card a cardiac the ab card " * 5
    asks = [Request(note + text, options) for text in ("abc", "the card", "abc", "b")]
    found = {each.index: each for each in desk.answers(asks, reuse=True)}
    for index, ask in enumerate(asks):
        one, alone = found[index], desk.alone(ask)
        assert list(one.steps) == list(alone)
        assert one.generation is not None
        read, whole = one.generation.prompt_decoded, one.generation.prompt_tokens
        for role in whole:
            if index:  # what differs, and a few whose rows are wanted
                assert read[role] <= 14 < whole[role]
            else:
                assert read[role] >= whole[role]


def test_nothing_is_reused_that_another_owner_has_left() -> None:
    """How much of a guess is not read anew would tell how the text of somebody else began."""
    desk, note = Desk(2), "abc the card a cardiac the ab card " * 5
    owners = ["one", "two", "one", "three", "two"]
    asks = [Request(note + "abc", PLAIN, owner=owner) for owner in owners]
    found = {each.index: each for each in desk.answers(asks, reuse=True)}
    as_alone(found, asks)
    anew = []
    for index in range(len(asks)):
        made = found[index].generation
        assert made is not None
        read, whole = made.prompt_decoded, made.prompt_tokens
        anew.append(all(read[role] >= whole[role] for role in whole))
    assert anew[:2] == [True, True] and not anew[2] and anew[3]


def test_others_go_on_while_a_long_prompt_is_read() -> None:
    desk, order = Desk(2), list[str]()
    fixed = dataclasses.replace(PLAIN, combine=CombineOptions(alphas=(0.5,)))
    for lanes in desk.models.values():
        lanes.chunk = 20
    notes = {name: lambda made, step, name=name: order.append(name) for name in ("short", "long")}
    asks = [
        Request(TEXTS[0], dataclasses.replace(fixed, max_tokens=40), on_step=notes["short"]),
        Request("abc the card a cardiac " * 20, fixed, on_step=notes["long"]),
    ]
    found = {each.index: each for each in desk.answers(asks)}
    as_alone(found, asks)
    assert 4 <= order.index("long") < 40


@pytest.mark.parametrize("mixed", [True, False])
def test_a_group_reads_its_prompt_once_whatever_runs_beside_it(mixed: bool) -> None:
    warm = SampleOptions(temperature=1.0)
    options = dataclasses.replace(PLAIN, sample=warm)
    if not mixed:
        options = dataclasses.replace(options, combine=CombineOptions(alphas=(0.5,)))
    note = "abc the card a cardiac the ab card " * 5
    asks = [
        Request(
            note + text,
            dataclasses.replace(options, sample=SampleOptions(1.0, seed=seed)),
            group=text,
        )
        for text in ("abc", "the card", "b")
        for seed in range(4)
    ]
    for places in (1, 3):
        desk = Desk(places)
        found = check(desk, asks)
        for index, one in found.items():
            assert one.generation is not None
            read, whole = one.generation.prompt_decoded, one.generation.prompt_tokens
            for role in whole:  # the first of a group reads everything itself
                assert read[role] <= 14 < whole[role] if index % 4 else read[role] >= whole[role]
