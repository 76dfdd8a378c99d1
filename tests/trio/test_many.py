"""Many requests at once, on the trio that travels with the package."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence

import pytest

from capt_local import GenerateOptions, LoadOptions, Request, RequestResult, Runtime, SampleOptions
from capt_local.decoding.options import Speed, Structure
from capt_local.decoding.step import Step
from capt_local.errors import (
    CaptError,
    ContextOverflow,
    MemoryShortage,
    UsageError,
)
from capt_local.llama import batched as many
from capt_local.prompting.messages import Message

OPTIONS = GenerateOptions(max_tokens=10, speed=Speed.EXACT_STEPS)
SYSTEM = Message(
    "system",
    "You are a careful clinical assistant. You answer in the words of a clinical note, you add "
    "nothing that was not said, and you keep numbers and names of drugs exactly as they are.",
)
NOTES = [
    "58-year-old woman with dyspnea on exertion for 3 days. Troponin negative.",
    "What are the symptoms of asthma?",
    "Metoprolol 25 mg twice a day, lisinopril 10 mg.",
    "Chest pain since this morning, no fever, blood pressure 142/88.",
    "Assessment: decompensated cardiomyopathy. Plan:",
]
NEAR = 2e-2  # nats
YES_NO = Structure('{"enum": ["yes", "no"]}')


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1, context=512), check=False) as opened:
        yield opened


def asks(options: GenerateOptions = OPTIONS) -> list[Request]:
    """A conversation and a question for each note; the system text is the same."""
    talks = [Request([SYSTEM, Message("user", note)], options) for note in NOTES]
    return talks + [Request(note, options) for note in NOTES[:2]]


def in_order(found: Sequence[RequestResult] | Iterator[RequestResult]) -> list[RequestResult]:
    return sorted(found, key=lambda each: each.index)


def alike(ones: Sequence[Step], twos: Sequence[Step]) -> int:
    """Tokens that are the same, up to where the last bits of another batch turned a near choice."""
    for count, (one, two) in enumerate(zip(ones, twos, strict=True)):
        if one.token != two.token:
            assert one.top[0].logp - one.top[1].logp < NEAR
            return count
        assert abs(one.logp - two.logp) < NEAR
    return len(ones)


def test_answers_are_those_of_one_at_a_time(runtime: Runtime) -> None:
    given = asks(dataclasses.replace(OPTIONS, top=2))
    together = in_order(runtime.generate_many(given, parallel=4))
    assert [each.index for each in together] == list(range(len(asks())))
    for request, two in zip(given, together, strict=True):
        runtime.forget()
        one = runtime.generate(request.prompt, request.options)
        steps = list(one)
        assert two.generation is not None and two.error is None
        assert one.prompt_tokens == two.generation.prompt_tokens
        assert one.notices == two.generation.notices
        pairs = zip(one.weights, two.generation.weights, strict=True)
        assert all(abs(a - b) < 1e-2 for (_, a), (_, b) in pairs)
        assert alike(steps, two.steps) > 0


def test_no_bit_depends_on_order_company_or_number(runtime: Runtime) -> None:
    given = asks()
    first = in_order(runtime.generate_many(given, parallel=4))
    again = in_order(runtime.generate_many(given, parallel=4))
    assert [each.steps for each in again] == [each.steps for each in first]
    turned = in_order(runtime.generate_many(given[::-1], parallel=3))[::-1]
    assert [each.steps for each in turned] == [each.steps for each in first]
    runtime.forget()
    (single,) = runtime.generate_many([given[3]], parallel=1)
    assert single.steps == first[3].steps
    assert first[3].generation is not None and single.generation is not None
    assert single.generation.weights == first[3].generation.weights


def test_seeds_forms_and_errors_are_each_requests_own(runtime: Runtime) -> None:
    warm = dataclasses.replace(OPTIONS, sample=SampleOptions(temperature=1.0, seed=3))
    given = [
        Request(NOTES[0], warm),
        Request(NOTES[0], dataclasses.replace(OPTIONS, structure=YES_NO)),
        Request("", OPTIONS),
        Request("fever " * 600, OPTIONS),
        Request(NOTES[0], warm, raw=True),
        Request([SYSTEM], OPTIONS),
    ]
    found = in_order(runtime.generate_many(given, parallel=3))
    assert found[1].generation is not None
    assert found[1].generation.text_bytes in (b'"yes"', b'"no"')
    assert found[1].generation.structured is True
    assert isinstance(found[2].error, UsageError) and isinstance(found[3].error, ContextOverflow)
    assert isinstance(found[5].error, UsageError)
    assert found[0].error is None and found[4].error is None
    again = in_order(runtime.generate_many(given[::-1], parallel=2))[::-1]
    assert [each.steps for each in again] == [each.steps for each in found]


def test_a_shared_beginning_is_decoded_once(runtime: Runtime) -> None:
    runtime.forget()
    before = runtime.decoded()
    list(runtime.generate_many(asks()[:5], parallel=5))
    shared = {role: count - before[role] for role, count in runtime.decoded().items()}
    before = runtime.decoded()
    for request in asks()[:5]:
        runtime.forget()
        list(runtime.generate(request.prompt, request.options))
    alone = {role: count - before[role] for role, count in runtime.decoded().items()}
    assert all(shared[role] < 0.75 * alone[role] for role in alone), (shared, alone)


def test_one_answer_may_be_made_between_two_of_many(runtime: Runtime) -> None:
    expected = in_order(runtime.generate_many(asks(), parallel=2))
    runtime.forget()
    own = tuple(runtime.generate(NOTES[1], OPTIONS))
    runtime.forget()
    running = runtime.generate_many(asks(), parallel=2)
    found = [next(running)]
    assert tuple(runtime.generate(NOTES[1], OPTIONS)) == own
    found += running
    assert [each.steps for each in in_order(found)] == [each.steps for each in expected]


def test_closing_in_mid_run_frees_everything() -> None:
    opened = Runtime.open("demo", load=LoadOptions(threads=1, context=512), check=False)
    running = opened.generate_many(asks(), parallel=2)
    kept = next(running)
    opened.close()
    with pytest.raises(CaptError, match="closed"):
        next(running)
    assert kept.generation is not None and kept.generation.notices == []
    del running
    gc.collect()


def test_lanes_that_do_not_fit_are_refused_with_what_would(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = sum(many._lane(model).kv_cache for model in runtime.models.values())
    buffers = sum(many._lane(model).buffers for model in runtime.models.values())
    monkeypatch.setattr(many, "available_memory", lambda: buffers + 5 * each + 7)
    with pytest.raises(MemoryShortage, match=r"16 requests at once: .*; 5 would fit"):
        runtime.generate_many(asks(), parallel=16)
    monkeypatch.setattr(many, "available_memory", lambda: buffers)
    with pytest.raises(MemoryShortage, match="one at a time"):
        runtime.generate_many(asks(), parallel=16)
