"""Full contexts, models that cannot rewind, cancelling and damaged numbers, in mid-draft."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from capt_local.decoding.options import CombineOptions, GenerateOptions, Method, Speed
from capt_local.decoding.speculate import setup
from capt_local.decoding.step import FinishReason
from capt_local.decoding.trio import Trio
from capt_local.errors import Cancelled, ContextOverflow, MemoryShortage, NumericalError
from tests.decoding.speculate.answers import (
    DRAFTING,
    Habit,
    Oracle,
    Told,
    at_every_speed,
    lettered,
    nothing_is_left_of_drafts,
    same,
    tell,
)
from tests.decoding.trios import assembly
from tests.fakes import FakeModel

WORDS = ["ab", "bc", "ca", " ab", "abc", "cab ", "b c"]
OTHERS = ["ac", "ba", "cc", " b", "aab", "bc a"]
ROLES = ("target", "expert", "base")
OPTIONS = GenerateOptions(max_tokens=30, combine=CombineOptions(alphas=(0.5,)))
SHORT = dataclasses.replace(OPTIONS, max_tokens=12)
STEPWISE = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)


class Failing(Habit):
    """Raises in one call to `extend` or `branch`, before or after it has done its work."""

    def __init__(self, *given: Any, **kinds: Any) -> None:
        super().__init__(*given, **kinds)
        self.calls = 0
        self.fail_at = 0
        self.late = False
        self.error: BaseException = Cancelled("Stopped on request.")

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        self._count()
        made = super().extend(tokens, rows)
        self._fail(late=True)
        return made

    def branch(
        self, tails: Sequence[Sequence[int]], after: Sequence[int] | None = None
    ) -> np.ndarray:
        self._count()
        made = super().branch(tails, after)
        self._fail(late=True)
        return made

    def _count(self) -> None:
        self.calls += 1
        self._fail(late=False)

    def _fail(self, *, late: bool) -> None:
        if self.calls == self.fail_at and late == self.late:
            raise self.error


def models(seed: int = 3, kind: type[Habit] = Failing, **kinds: Any) -> dict[str, Any]:
    own, other = lettered(WORDS), lettered(OTHERS)
    made = {"target": own, "expert": other, "base": other}
    kinds.setdefault("max_rows", 16)
    return {role: kind(made[role], seed + at, **kinds) for at, role in enumerate(made)}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("over", [0, 1, 2, 5, 6, 11])
def test_a_context_that_fills(role: str, over: int) -> None:
    """The answer ends where it does step by step, whoever's context is full, and why is said."""

    def short() -> Mapping[str, FakeModel]:
        made = models(over)
        made[role].context_limit = 15 + over
        return made

    options = dataclasses.replace(OPTIONS, max_tokens=40)
    for plausibility in (1e-5, 0.2):
        combine = CombineOptions(alphas=(0.5,), plausibility=plausibility)
        found = at_every_speed(short, dataclasses.replace(options, combine=combine))
        for told in found.values():
            assert told.generation.finish is FinishReason.LENGTH
            assert any("context is full" in note for note in told.generation.notices)
            assert not any("failed" in note for note in told.generation.notices)


def test_a_draft_that_does_not_fit_into_the_context_of_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One token of the target may be many pieces: the draft is given up, the answer is not."""
    own, other = lettered(["abcabcab"]), lettered([])
    always = np.full(len(own), -10.0, np.float32)
    always[own.pieces().index(b"abcabcab")] = 10

    def made(limit: int) -> Mapping[str, FakeModel]:
        found = {
            role: Habit(vocabulary, 1, max_rows=16)
            for role, vocabulary in (("target", own), ("expert", other), ("base", other))
        }
        found["target"].logits = lambda tokens: always  # type: ignore[method-assign]
        for role in ("expert", "base"):
            found[role].context_limit = limit
        return found

    refused: list[int] = []
    look_ahead = Trio.look_ahead

    def watched(trio: Trio, draft: Sequence[int], *, read: bool) -> None:
        try:
            look_ahead(trio, draft, read=read)
        except ContextOverflow:
            refused.append(len(draft))
            raise

    monkeypatch.setattr(Trio, "look_ahead", watched)
    token = int(always.argmax())
    monkeypatch.setattr(
        setup, "sources", lambda trio: [Oracle([token] * 99, lambda left, n: left[:n])]
    )
    said_of_full = "The context is nearly full, so the end of the answer is written without drafts."
    full = 0
    for limit in range(40, 56):
        found = at_every_speed(lambda limit=limit: made(limit), OPTIONS)
        assert 2 < len(found[Speed.AUTO].steps) < 10
        said = found[Speed.AUTO].generation.tally.notices
        assert said in ([], [said_of_full])
        full += bool(said)
    assert full == len(refused) > 0


@pytest.mark.parametrize("roles", [("target",), ("expert",), ("expert", "base"), ROLES])
def test_models_that_cannot_rewind_are_not_drafted_for_and_that_is_said(
    roles: Sequence[str],
) -> None:
    for seed in range(2):

        def made(seed: int = seed) -> Mapping[str, FakeModel]:
            found = models(seed)
            for role in roles:
                found[role].can_rewind = False
            return found

        plain = tell(made(), STEPWISE)
        for speed in DRAFTING:
            told = tell(made(), dataclasses.replace(OPTIONS, speed=speed))
            assert [step.token for step in told.steps] == [step.token for step in plain.steps]
            assert told.generation.text_bytes == plain.generation.text_bytes
            assert not told.generation.tally.drafted
            said = [note for note in told.generation.notices if "without drafts" in note]
            assert len(said) == 1
        assert not any("without drafts" in note for note in plain.generation.notices)


def test_a_target_alone_that_cannot_rewind_says_nothing_unless_asked() -> None:
    for speed, wanted in ((Speed.AUTO, 0), (Speed.LOOKUP, 1)):
        made = {"target": models()["target"]}
        made["target"].can_rewind = False
        told = tell(made, GenerateOptions(method=Method.TARGET, max_tokens=5, speed=speed))
        assert sum("without drafts" in note for note in told.generation.notices) == wanted


def calls_of_answer(speed: Speed) -> dict[str, tuple[int, int]]:
    """For each model its first call behind the prompt and its last one."""
    made, prompt = models(), models()
    tell(made, dataclasses.replace(SHORT, speed=speed))
    tell(prompt, dataclasses.replace(SHORT, max_tokens=1, speed=speed))
    return {role: (prompt[role].calls + 1, made[role].calls) for role in made}


ERRORS = [Cancelled("Stopped."), KeyboardInterrupt(), NumericalError("nan"), MemoryShortage("no")]


@pytest.mark.parametrize(
    ("speed", "error"),
    [
        *((speed, ERRORS[0]) for speed in (Speed.LOOKUP, Speed.TARGET_DRAFT, Speed.EXPERT_DRAFT)),
        *((Speed.EXPERT_DRAFT, error) for error in ERRORS[1:]),
    ],
    ids=lambda given: str(given) if isinstance(given, Speed) else type(given).__name__,
)
@pytest.mark.parametrize("role", ROLES)
def test_an_error_in_any_call_of_any_model(role: str, speed: Speed, error: BaseException) -> None:
    an_error_in_any_call(role, speed, error)


@pytest.mark.parametrize("speed", Speed)
@pytest.mark.parametrize("role", ROLES)
def test_an_interrupt_between_a_call_and_its_record(role: str, speed: Speed) -> None:
    """The model has decoded, and nobody has taken that down."""
    an_error_in_any_call(role, speed, KeyboardInterrupt(), late=True)


def an_error_in_any_call(
    role: str, speed: Speed, error: BaseException, *, late: bool = False
) -> None:
    """Afterwards all models stand at one text, and the next answer is the right one."""
    stepwise = dataclasses.replace(SHORT, speed=Speed.EXACT_STEPS)
    plain = tell(models(), stepwise)
    said = [step.token for step in plain.steps]
    first, last = calls_of_answer(speed)[role]
    assert last > first + 1
    for number in range(first, last + 1):
        made = models()
        trio = assembly(made).trio(SHORT)
        made[role].fail_at, made[role].error, made[role].late = number, error, late
        told = tell(made, dataclasses.replace(SHORT, speed=speed), trio=trio)
        tokens = [step.token for step in told.steps]
        assert tokens == said[: len(tokens)]
        ended(told, error)
        again = tell(made, stepwise, trio=trio)
        same(again, plain)
        assert made[role].calls >= number  # it has happened


def ended(told: Told, error: BaseException) -> None:
    """What became of an answer in which a call failed."""
    generation = told.generation
    if isinstance(error, Cancelled):
        assert told.error is None and generation.finish is FinishReason.INTERRUPTED
    else:  # also in a draft, which the answer did not need: a model that fails may fail again
        assert told.error is error and generation.finish is FinishReason.ERROR


class Damaged(Habit):
    """Gives numbers that are none after one text."""

    bad: Callable[[Sequence[int]], bool] = staticmethod(lambda tokens: False)

    def __init__(self, *given: Any, **kinds: Any) -> None:
        super().__init__(*given, **kinds)
        self.read: set[tuple[int, ...]] = set()

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        held = len(self.tokens)
        made = super().extend(tokens, rows)
        ends = range(len(self.tokens) - rows + 1, len(self.tokens) + 1)
        self.read |= {tuple(self.tokens[:end]) for end in ends}
        if any(self.bad(self.tokens[:end]) for end in ends):
            del self.tokens[held:]
            raise NumericalError("logits that are not numbers")
        return made


@pytest.mark.parametrize("role", ROLES)
def test_damaged_numbers_behind_a_wrong_draft_are_told(
    monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    sound = models(kind=Damaged)
    plain = tell(sound, STEPWISE)
    said = [step.token for step in plain.steps]
    wrong = next(token for token in range(2, 6) if token not in said[:3])
    monkeypatch.setattr(
        setup, "sources", lambda trio: [Oracle(said, lambda left, n: [left[0], wrong, *left][:n])]
    )
    made = models(kind=Damaged)
    made[role].bad = lambda tokens: tuple(tokens) not in sound[role].read
    told = tell(made, OPTIONS)
    assert isinstance(told.error, NumericalError)
    assert told.generation.finish is FinishReason.ERROR
    assert [step.token for step in told.steps] == said[: len(told.steps)]
    assert told.generation.tally.notices == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", [3, 10])
def test_damaged_numbers_that_are_needed_end_the_answer(role: str, place: int) -> None:
    def made() -> Mapping[str, FakeModel]:
        found = models(kind=Damaged)
        plain = tell(models(kind=Damaged), STEPWISE)
        text = plain.trio.tokens if role == "target" else plain.trio.proxies[0].tokens
        found[role].bad = lambda tokens: len(tokens) == len(text) - place
        return found

    options = dataclasses.replace(OPTIONS, combine=CombineOptions(alphas=(0.5,), plausibility=0.0))
    plain = tell(made(), dataclasses.replace(options, speed=Speed.EXACT_STEPS))
    said = [step.token for step in plain.steps]
    for speed in Speed:
        told = tell(made(), dataclasses.replace(options, speed=speed))
        # A draft may come upon them before the answer does.
        assert [step.token for step in told.steps] == said[: len(told.steps)]
        assert isinstance(told.error, NumericalError)
        assert told.generation.finish is FinishReason.ERROR


def test_cancelling_between_steps_of_one_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tell(models(), STEPWISE)
    said = [step.token for step in plain.steps]
    monkeypatch.setattr(setup, "sources", lambda trio: [Oracle(said, lambda left, n: left[:n])])
    for stop_at in (1, 2, 4, 7, 15, 29):
        made = models()
        trio: Trio = assembly(made).trio(OPTIONS)
        asked = iter([False] * stop_at + [True] * 99)
        told = tell(made, OPTIONS, trio=trio, cancel=lambda asked=asked: next(asked))
        assert told.generation.finish is FinishReason.INTERRUPTED
        assert [step.token for step in told.steps] == said[:stop_at]
        tally = told.generation.tally
        assert tally.accepted <= stop_at
        nothing_is_left_of_drafts(trio)
        same(tell(made, STEPWISE, trio=trio), plain)
