"""Many requests at once, on trios of real files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest

from capt_local import GenerateOptions, Request, RequestResult, Runtime
from capt_local.decoding.options import Speed, Step, Structure
from capt_local.errors import MemoryShortage
from capt_local.llama import batched
from capt_local.prompting.messages import Message

OPTIONS = GenerateOptions(max_tokens=10, speed=Speed.EXACT_STEPS, top=2)
SYSTEM = Message("system", "You answer in the words of a clinical note, and add nothing to it.")
NOTES = [
    "58-year-old woman with dyspnea on exertion for 3 days. Troponin negative.",
    "What are the symptoms of asthma?",
    "Metoprolol 25 mg twice a day, lisinopril 10 mg.",
    "Chest pain since this morning, no fever, blood pressure 142/88.",
]
NEAR = 2e-2  # nats


def asks() -> list[Request]:
    """A conversation for each note, with one system text, and a question."""
    talks = [Request([SYSTEM, Message("user", note)], OPTIONS) for note in NOTES]
    return [*talks, Request(NOTES[1], OPTIONS)]


def in_order(found: Sequence[RequestResult] | Iterator[RequestResult]) -> list[RequestResult]:
    return sorted(found, key=lambda each: each.index)


def steps_of(found: Sequence[RequestResult] | Iterator[RequestResult]) -> list[Sequence[Step]]:
    return [each.steps for each in in_order(found)]


def alike(ones: Sequence[Step], twos: Sequence[Step]) -> int:
    """Tokens that are the same, up to where the last bits of another batch turned a near choice."""
    for count, (one, two) in enumerate(zip(ones, twos, strict=True)):
        if one.token != two.token:
            assert one.top[0].logp - one.top[1].logp < NEAR
            return count
        assert abs(one.logp - two.logp) < NEAR
    return len(ones)


def test_answers_are_those_of_one_at_a_time_and_no_bit_depends_on_their_company(
    demo: Runtime,
) -> None:
    given = asks()
    first = in_order(demo.generate_many(given, parallel=4))
    assert [each.index for each in first] == list(range(len(given)))
    for request, two in zip(given, first, strict=True):
        demo.forget()
        one = demo.generate(request.prompt, request.options)
        steps = list(one)
        assert two.generation is not None and two.error is None
        assert one.prompt_tokens == two.generation.prompt_tokens
        assert one.notices == two.generation.notices
        pairs = zip(one.weights, two.generation.weights, strict=True)
        assert all(abs(a - b) < 1e-2 for (_, a), (_, b) in pairs)
        assert alike(steps, two.steps) > 0
    turned = steps_of(demo.generate_many(given[::-1], parallel=3))[::-1]
    assert turned == [each.steps for each in first]
    demo.forget()
    (single,) = demo.generate_many([given[3]], parallel=1)
    assert single.steps == first[3].steps
    assert first[3].generation is not None and single.generation is not None
    assert single.generation.weights == first[3].generation.weights


def test_a_form_is_its_requests_own(small: Runtime) -> None:
    formed = dataclasses.replace(OPTIONS, structure=Structure('{"enum": ["yes", "no"]}'))
    given = [Request(NOTES[0], OPTIONS), Request(NOTES[0], formed), Request(NOTES[2], OPTIONS)]
    found = in_order(small.generate_many(given, parallel=3))
    assert found[1].generation is not None and found[1].generation.structured is True
    assert found[1].generation.text_bytes in (b'"yes"', b'"no"')
    assert steps_of(small.generate_many(given[::-1], parallel=2))[::-1] == steps_of(found)


def test_one_answer_may_be_made_between_two_of_many(small: Runtime) -> None:
    expected = steps_of(small.generate_many(asks(), parallel=2))
    small.forget()
    own = tuple(small.generate(NOTES[1], OPTIONS))
    small.forget()
    running = small.generate_many(asks(), parallel=2)
    found = [next(running)]
    assert tuple(small.generate(NOTES[1], OPTIONS)) == own
    assert steps_of([*found, *running]) == expected


def test_lanes_that_do_not_fit_are_refused_with_what_would(
    small: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = sum(batched.sequence_memory(model).kv_cache for model in small.models.values())
    buffers = sum(batched.sequence_memory(model).buffers for model in small.models.values())
    monkeypatch.setattr(batched, "available_memory", lambda: buffers + 5 * each + 7)
    with pytest.raises(MemoryShortage, match=r"16 requests at once: .*; 5 would fit"):
        small.generate_many(asks(), parallel=16)
    monkeypatch.setattr(batched, "available_memory", lambda: buffers)
    with pytest.raises(MemoryShortage, match="one at a time"):
        small.generate_many(asks(), parallel=16)
