"""Drafts and gate on the real demo trio: the same answers, in fewer passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.decode.generation import Generation
from capt_local.decode.options import Speed

# Repeats itself, as notes and their summaries do.
COPY = (
    "Medications: furosemide 40 mg daily, lisinopril 10 mg daily, metoprolol 25 mg daily.\n"
    "Medications: furosemide 40 mg daily, lisinopril 10 mg daily, metoprolol 25 mg daily.\n"
    "Medications: furosemide 40 mg daily,"
)
PROMPTS = [
    "A 58-year-old man has had a dry cough for three weeks. What should be asked?",
    "Mr. Karlov, 71, fell at home. No loss of consciousness. Write one line for the note.",
]
OPTIONS = GenerateOptions(max_tokens=24, combine=CombineOptions(alphas=(1.0,)))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


def answered(runtime: Runtime, prompt: str, options: GenerateOptions, *, raw: bool) -> Generation:
    generation = runtime.generate(prompt, options, raw=raw)
    for _ in generation:
        pass
    for cached in generation.trio.models:  # no draft is left in a KV cache
        assert cached.model.position == len(cached.tokens)
    for cached, text in zip(
        generation.trio.models,
        [generation.trio.tokens, *(proxy.tokens for proxy in generation.trio.proxies)],
        strict=True,
    ):
        assert cached.tokens == text[: len(cached.tokens)]
    return generation


@pytest.mark.parametrize(("prompt", "raw"), [(COPY, True), *((each, False) for each in PROMPTS)])
def test_the_answer_is_the_same_at_every_speed(runtime: Runtime, prompt: str, raw: bool) -> None:
    stepwise = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)
    plain = answered(runtime, prompt, stepwise, raw=raw)
    assert plain.text and not plain.tally.drafted and not plain.tally.gated
    for speed in Speed:
        told = answered(runtime, prompt, dataclasses.replace(OPTIONS, speed=speed), raw=raw)
        assert told.text == plain.text
        assert (told.finish, told.changed) == (plain.finish, plain.changed)
        tally = told.tally
        assert tally.steps == told.steps_done == plain.steps_done
        assert 0 <= tally.accepted <= tally.drafted
        assert set(tally.by_source) <= {"lookup", "target-draft", "expert-draft"}
        assert not told.tally.notices


def test_copying_takes_fewer_passes_of_every_model(runtime: Runtime) -> None:
    stepwise = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)
    slow = answered(runtime, COPY, stepwise, raw=True).tally.forwards_per_token()
    for speed in (Speed.AUTO, Speed.LOOKUP):
        told = answered(runtime, COPY, dataclasses.replace(OPTIONS, speed=speed), raw=True)
        assert told.tally.accepted > 5 and 0.0 < (told.tally.acceptance or 0.0) <= 1.0
        fast = told.tally.forwards_per_token()
        assert all(fast[role] < 0.8 * slow[role] for role in ("target", "expert", "base"))


def test_the_target_alone_drafts_from_its_text(runtime: Runtime) -> None:
    options = dataclasses.replace(OPTIONS, method=Method.TARGET)
    stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
    plain = answered(runtime, COPY, stepwise, raw=True)
    told = answered(runtime, COPY, options, raw=True)
    assert told.text == plain.text
    assert told.tally.accepted and told.tally.passes["target"] < plain.tally.passes["target"]
