"""Calls of the public API in any order: no crash, no silent loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from capt_local import CaptError, GenerateOptions, LoadOptions, Request, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import Structure
from capt_local.errors import UsageError
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Placement
from tests.tiny_models import tiny_gguf

OPTIONS = GenerateOptions(max_tokens=4)
LOAD = LoadOptions(threads=1, context=256)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("models")
    roles = enumerate(("target", "expert", "base"))
    return Bundle.from_paths(*(tiny_gguf(folder / f"{role}.gguf", seed=n) for n, role in roles))


@pytest.fixture
def runtime(files: Bundle) -> Iterator[Runtime]:
    with Runtime.open(files, load=LOAD, check=False) as opened:
        yield opened


def test_a_second_answer_ends_the_first_and_reading_it_on_raises(runtime: Runtime) -> None:
    first = runtime.generate("abc", OPTIONS, raw=True)
    next(first)
    before = first.text_bytes
    second = runtime.generate("abc", OPTIONS, raw=True)
    assert list(second)
    with pytest.raises(UsageError, match="Another text"):
        next(first)
    assert first.text_bytes.startswith(before)


def test_a_runtime_that_is_closed_refuses_every_call(files: Bundle) -> None:
    runtime = Runtime.open(files, load=LOAD, check=False)
    open_answer = runtime.generate("abc", OPTIONS, raw=True)
    next(open_answer)
    many = runtime.generate_many([Request("abc", OPTIONS, raw=True)] * 3, parallel=2)
    next(many)
    model = runtime.models["target"]
    runtime.close()
    runtime.close()
    calls = [
        lambda: next(open_answer),
        lambda: next(many),
        lambda: runtime.generate("abc"),
        lambda: runtime.generate_many([]),
        lambda: runtime.score(b"abc"),
        lambda: runtime.score_answer("abc", b"a", raw=True),
        lambda: runtime.choose("abc", ["a", "b"], raw=True),
        lambda: runtime.keep("abc"),
        runtime.forget,
        lambda: model.extend([1]),
        lambda: model.step([1]),
        lambda: model.rewind(0),
        lambda: model.tokenize(b"abc", special=False),
    ]
    for call in calls:
        with pytest.raises(CaptError):
            call()
    assert open_answer.finish is not None and open_answer.text is not None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"alpha": "much"}, "alpha"),
        ({"weights": 3}, "weights"),
        ({"stop": 4}, "stop"),
        ({"method": "best"}, "method"),
        ({"colour": 1}, "colour"),
        ({"options": {"max_tokens": 2}}, "options"),
    ],
)
def test_a_wrong_argument_is_named(
    runtime: Runtime, arguments: dict[str, object], name: str
) -> None:
    with pytest.raises(UsageError, match=name):
        runtime.generate("abc", raw=True, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prompt", [3, b"abc", [3], [{"role": "user"}], [{"role": "nurse", "content": "a"}], {"a": 1}]
)
def test_a_wrong_prompt_is_refused(runtime: Runtime, prompt: object) -> None:
    with pytest.raises(UsageError):
        runtime.generate(prompt)  # type: ignore[arg-type]


class PublicCalls(RuleBasedStateMachine):
    """Answers, scores and closing in any order."""

    files: Bundle

    def __init__(self) -> None:
        super().__init__()
        self.runtime = Runtime.open(self.files, load=LOAD, check=False)
        self.open = True
        self.answers: list[tuple[Generation, list[bytes]]] = []

    def call(self, work: object) -> object:
        try:
            return work()  # type: ignore[operator]
        except CaptError:
            return None

    @rule(prompt=st.sampled_from(["abc", "a b", "", "x" * 400]))
    def generate(self, prompt: str) -> None:
        made = self.call(lambda: self.runtime.generate(prompt, OPTIONS, raw=True))
        if not self.open:
            assert made is None
        if isinstance(made, Generation):
            self.answers.append((made, []))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.answers) - 1))
        answer, pieces = self.answers[number]
        try:
            pieces.append(next(answer).piece_bytes)
        except StopIteration:  # only at the end, or where it was interrupted by its own reader
            assert answer.finish is not None and answer.text_bytes == b"".join(pieces)
        except CaptError:
            assert not self.open or number < len(self.answers) - 1 or answer.finish is not None

    @precondition(lambda self: self.answers)
    @rule()
    def end(self) -> None:
        self.answers[-1][0].end()

    @rule()
    def score(self) -> None:
        found = self.call(lambda: self.runtime.score_answer("abc", b"ab", OPTIONS, raw=True))
        assert (found is not None) == self.open

    @rule(count=st.integers(0, 3), reuse=st.booleans())
    def many(self, count: int, reuse: bool) -> None:
        requests = [Request("abc", OPTIONS, raw=True)] * 3
        results = self.call(lambda: self.runtime.generate_many(requests, parallel=2, reuse=reuse))
        assert (results is not None) == self.open
        for _ in range(count if results is not None else 0):
            self.call(lambda: next(results))  # type: ignore[call-overload]

    @rule()
    def forget(self) -> None:
        self.call(self.runtime.forget)

    @rule()
    def close(self) -> None:
        self.runtime.close()
        self.open = False

    def teardown(self) -> None:
        self.runtime.close()


class PublicCallsOfOne(PublicCalls):
    """The same with runtimes that are opened once for many sequences: seven of eight close none."""

    opened: ClassVar[list[Runtime]] = []
    closes = False

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        self.runtime = (
            self.opened.pop() if self.opened else Runtime.open(self.files, load=LOAD, check=False)
        )
        self.open = True
        self.answers = []

    @initialize(number=st.integers(0, 7))
    def may_close(self, number: int) -> None:
        self.closes = number == 7

    @precondition(lambda self: self.closes)
    @rule()
    def close(self) -> None:
        super().close()

    def teardown(self) -> None:
        if self.open:
            for answer, _ in self.answers:
                answer.end()
            self.runtime.forget()
            self.opened.append(self.runtime)


@pytest.mark.parametrize(
    ("machine", "sequences"),
    [(PublicCalls, 25), pytest.param(PublicCallsOfOne, 100_000, marks=pytest.mark.slow)],
)
def test_any_order_of_public_calls(
    files: Bundle, machine: type[PublicCalls], sequences: int
) -> None:
    machine.files = files
    case = machine.TestCase
    case.settings = settings(
        max_examples=sequences,
        stateful_step_count=12,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()


def test_a_place_for_a_role_that_is_not_there_is_refused(files: Bundle) -> None:
    load = LoadOptions(placements={"exprt": Placement(0)})
    with pytest.raises(UsageError, match="has no exprt"):
        Runtime.open(files, load=load, check=False)
    assert Placement(devices=["CPU"]) == Placement(devices=("CPU",))  # type: ignore[arg-type]


def test_a_structure_is_a_schema() -> None:
    for source in ('root ::= "yes"', "[1]", "[" * 100_000):
        with pytest.raises(UsageError, match="JSON schema"):
            Structure(source)


def test_what_was_loaded_is_closed_where_the_runtime_cannot_be_made(
    files: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[LlamaModel] = []

    def interrupted(models: dict[str, LlamaModel], *_: object) -> None:
        opened.extend(models.values())
        raise KeyboardInterrupt

    monkeypatch.setattr("capt_local.runtime._add_turn_ends", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runtime.open(files, load=LOAD, check=False)
    assert opened
    for model in opened:
        with pytest.raises(CaptError, match="closed"):
            model.extend([1])


def test_a_text_is_scored_by_default_with_the_weights_of_continued_text(runtime: Runtime) -> None:
    first = runtime.score(b"abc abd").nats
    list(runtime.generate("abc", OPTIONS, raw=True))
    assert runtime.score(b"abc abd").nats == pytest.approx(first, rel=1e-4)
