"""Drafts and gate on the real demo trio: the same answers, in fewer passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.generation import Generation
from capt_local.decoding.options import Speed
from capt_local.decoding.speculate import setup
from capt_local.decoding.speculate.draft import Draft
from capt_local.decoding.speculate.lookup import Lookup
from capt_local.decoding.step import FinishReason, Step
from capt_local.errors import Cancelled
from tests.tiny_models import tiny_gguf

# Repeats itself, as notes and their summaries do.
COPY = "Medications: aspirin, lisinopril, metoprolol.\n" * 4 + "Medications: aspirin,"
PROMPTS = [
    "A 58-year-old man has had a dry cough for three weeks. What should be asked?",
    "Mr. Karlov, 71, fell at home. No loss of consciousness. Write one line for the note.",
]
TIE = 1e-3  # nats
OPTIONS = GenerateOptions(max_tokens=24, combine=CombineOptions(alphas=(1.0,)))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


def answered(
    runtime: Runtime,
    prompt: str,
    options: GenerateOptions,
    *,
    raw: bool,
    into: list[Step] | None = None,
) -> Generation:
    generation = runtime.generate(prompt, options, raw=raw)
    steps = list(generation)
    if into is not None:
        into += steps
    for cached in generation.trio.models:  # no draft is left in a KV cache
        assert cached.model.position == len(cached.tokens)
    for cached, text in zip(
        generation.trio.models,
        [generation.trio.tokens, *(proxy.tokens for proxy in generation.trio.proxies)],
        strict=True,
    ):
        assert cached.tokens == text[: len(cached.tokens)]
    return generation


def changes(steps: list[Step]) -> list[int]:
    """The steps that the expert changed, but for those where the target has two tokens level.

    There the last bits, which depend on the shapes of batches, decide which is its own choice.
    """
    apart = (step for step in steps if abs(step.target_choice.logp - step.target_logp) > TIE)
    return [step.index for step in apart if step.changed]


@pytest.mark.parametrize(("prompt", "raw"), [(COPY, True), *((each, False) for each in PROMPTS)])
def test_the_answer_is_the_same_at_every_speed(runtime: Runtime, prompt: str, raw: bool) -> None:
    stepwise = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)
    wanted: list[Step] = []
    plain = answered(runtime, prompt, stepwise, raw=raw, into=wanted)
    assert plain.text_bytes and not plain.tally.drafted and not plain.tally.gated
    for speed in Speed:
        got: list[Step] = []
        options = dataclasses.replace(OPTIONS, speed=speed)
        told = answered(runtime, prompt, options, raw=raw, into=got)
        assert told.text_bytes == plain.text_bytes
        assert told.finish == plain.finish and changes(got) == changes(wanted)
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
    assert told.text_bytes == plain.text_bytes
    assert told.tally.accepted and told.tally.passes["target"] < plain.tally.passes["target"]


def calls(runtime: Runtime) -> dict[str, int]:
    return {role: model.calls for role, model in runtime.models.items()}


@pytest.mark.parametrize("speed", [Speed.LOOKUP, Speed.TARGET_DRAFT, Speed.EXPERT_DRAFT])
def test_cancelled_in_the_middle_of_a_draft_all_models_stand_at_one_text(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, speed: Speed
) -> None:
    """In some batch behind the prompt, of each model in turn, after it was computed."""
    stepwise = dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS)
    drafting = dataclasses.replace(OPTIONS, speed=speed)
    plain = answered(runtime, COPY, stepwise, raw=True)
    runtime.forget()
    begun = runtime.generate(COPY, drafting, raw=True)
    begun.prepare()
    prompt = calls(runtime)
    assert [step.piece_bytes for step in begun] and begun.text_bytes == plain.text_bytes
    done = calls(runtime)
    for role, model in runtime.models.items():
        first, last = prompt[role] + 1, done[role]
        assert last - first >= 3
        for number in {first, first + 1, (first + last) // 2, last - 1}:
            runtime.forget()
            begun = runtime.generate(COPY, drafting, raw=True)
            begun.prepare()
            left = number - prompt[role]
            decode = model._context.decode

            def stopped() -> None:
                nonlocal left
                decode()  # noqa: B023
                left -= 1
                if not left:
                    raise Cancelled("Stopped on request.")

            with monkeypatch.context() as patch:
                patch.setattr(model._context, "decode", stopped)
                said = b"".join(step.piece_bytes for step in begun)
            assert left <= 0 and begun.finish is FinishReason.INTERRUPTED
            assert plain.text_bytes.startswith(said) and said != plain.text_bytes
            trio = begun.trio
            for cached, text in zip(
                trio.models, [trio.tokens, *(each.tokens for each in trio.proxies)], strict=True
            ):
                assert cached.model.position == len(cached.tokens)
                assert cached.tokens == text[: len(cached.tokens)]
            assert answered(runtime, COPY, stepwise, raw=True).text == plain.text_bytes


def test_a_source_that_throws_is_left_out_and_that_is_said(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Throwing(Lookup):
        def draft(self, *given: object) -> Draft:
            raise KeyError("words of a note")

    plain = answered(runtime, COPY, dataclasses.replace(OPTIONS, speed=Speed.EXACT_STEPS), raw=True)
    monkeypatch.setattr(setup, "sources", lambda trio: [Throwing()])
    told = answered(runtime, COPY, OPTIONS, raw=True)
    assert told.text_bytes == plain.text_bytes and not told.tally.drafted
    (said,) = told.tally.notices
    assert "lookup failed (KeyError) and are switched off" in said and "note" not in said


@pytest.mark.parametrize("recurrent", [("expert", "base"), ("target", "expert", "base")])
def test_models_that_cannot_go_back_write_the_same_without_drafts(
    tmp_path: Path, recurrent: tuple[str, ...]
) -> None:
    paths = [
        tiny_gguf(
            tmp_path / f"{role}.gguf",
            seed=seed,
            architecture="mamba" if role in recurrent else "llama",
        )
        for seed, role in enumerate(("target", "expert", "base"))
    ]
    options = dataclasses.replace(OPTIONS, max_tokens=12)
    load = LoadOptions(threads=1, context=256)
    with Runtime.open(Bundle.from_paths(*paths), load=load, check=False) as opened:
        stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        plain = list(opened.generate("abc", stepwise, raw=True))
        for speed in (Speed.AUTO, Speed.LOOKUP, Speed.EXPERT_DRAFT):
            told = opened.generate("abc", dataclasses.replace(options, speed=speed), raw=True)
            assert [step.token for step in told] == [step.token for step in plain]
            assert not told.tally.drafted
            assert sum("without drafts" in note for note in told.notices) == 1


def test_two_threads_give_the_same_answer() -> None:
    options = dataclasses.replace(OPTIONS, max_tokens=4)  # threads wait for each other: slow in CI
    with Runtime.open("demo", load=LoadOptions(threads=2, context=256), check=False) as opened:
        stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
        plain = answered(opened, "Plan: aspirin. Plan: aspirin. Plan:", stepwise, raw=True)
        told = answered(opened, "Plan: aspirin. Plan: aspirin. Plan:", options, raw=True)
        assert told.text_bytes == plain.text_bytes
