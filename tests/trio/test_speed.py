"""Drafts and skipped proxies on real files: the same bits, in fewer passes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capt_local import (
    CombineOptions,
    GenerateOptions,
    LoadOptions,
    Method,
    Request,
    Runtime,
    SampleOptions,
)
from capt_local.bundles.manifest import Bundle
from capt_local.cli.app import run
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import FinishReason, Speed, Step
from capt_local.errors import Cancelled
from capt_local.rerank import best_of
from tests.decoding.answers import eager, nothing_is_left_of_drafts
from tests.tiny_models import tiny_gguf

# Repeats itself, as notes and their summaries do.
COPY = "Medications: aspirin, lisinopril, metoprolol.\n" * 4 + "Medications: aspirin,"
QUESTION = "A 58-year-old man has had a dry cough for three weeks. What should be asked?"
TASK = "Mr. Karlov, 71, fell at home. No loss of consciousness. Write one line for the note."
OPTIONS = GenerateOptions(max_tokens=24, combine=CombineOptions(alphas=(1.0,)))


def answered(
    runtime: Runtime,
    prompt: str,
    speed: Speed,
    options: GenerateOptions = OPTIONS,
    *,
    raw: bool = True,
) -> tuple[Generation, list[Step]]:
    generation = runtime.generate(prompt, options, speed=speed, raw=raw)
    steps = list(generation)
    nothing_is_left_of_drafts(generation._ensemble)
    return generation, steps


def bits(steps: list[Step]) -> list[tuple[int, float, float]]:
    return [(step.token, step.logp, step.target_logp) for step in steps]


@pytest.mark.parametrize(("prompt", "raw"), [(COPY, True), (QUESTION, False)])
def test_the_answer_has_the_same_bits_at_every_speed(demo: Runtime, prompt: str, raw: bool) -> None:
    plain, wanted = answered(demo, prompt, Speed.EXACT_STEPS, raw=raw)
    assert plain.text and not plain.stats.drafted and not plain.stats.proxies_skipped
    for drafts in (nullcontext(), eager()):
        demo.forget()
        with drafts:
            fast, got = answered(demo, prompt, Speed.AUTO, raw=raw)
        assert bits(got) == bits(wanted) and fast.text == plain.text
        assert fast.finish == plain.finish and fast.changed == plain.changed
        stats = fast.stats
        assert stats.steps == fast.steps_done == plain.steps_done
        assert 0 <= stats.accepted <= stats.drafted
        assert set(stats.by_source) <= {"lookup", "target-draft"}
    if raw:  # it was worth it
        assert stats.accepted > 5 and 0.0 < (stats.acceptance or 0.0) <= 1.0
        for role in ("expert", "base"):
            assert stats.passes[role] < 0.8 * plain.stats.passes[role]


def test_models_without_weight_do_not_run(small: Runtime) -> None:
    options = dataclasses.replace(OPTIONS, combine=CombineOptions(powers=(1.0, 0.0, 0.0)))
    alone, steps = answered(small, COPY, Speed.AUTO, options)
    before = small.decoded()
    for speed in (Speed.EXACT_STEPS, Speed.AUTO):
        small.forget()
        target = dataclasses.replace(OPTIONS, method=Method.TARGET)
        assert bits(answered(small, COPY, speed, options)[1]) == bits(steps)
        assert bits(answered(small, COPY, speed, target)[1]) == bits(steps)
    after = small.decoded()
    assert (after["expert"], after["base"]) == (before["expert"], before["base"])
    assert set(alone.context) == {"target"}


def test_fast_runs_the_proxies_less_often_and_says_so(demo: Runtime) -> None:
    demo.forget()
    options = dataclasses.replace(OPTIONS, speed=Speed.FAST, max_tokens=40)
    every, _ = answered(demo, TASK, Speed.EXACT_STEPS, options, raw=False)
    demo.forget()
    fast, steps = answered(demo, TASK, Speed.FAST, options, raw=False)
    ran = len(steps) - fast.stats.proxies_skipped
    assert 0 < ran < len(steps) and fast.stats.passes["target"] >= len(steps) - 1
    for role in ("expert", "base"):
        assert 0 < fast.stats.passes[role] < every.stats.passes[role]
    assert f"no part in {fast.stats.proxies_skipped} of {len(steps)} " in fast.notices[-1]
    demo.forget()
    assert bits(answered(demo, TASK, Speed.FAST, options, raw=False)[1]) == bits(steps)
    # Several at once, drawn or not, skip by the same rule.
    (one,) = demo.generate_many([Request(TASK, options)], parallel=2)
    assert one.generation is not None and one.generation.stats.proxies_skipped > 0
    sample = SampleOptions(temperature=0.2)
    best = best_of(demo, TASK, dataclasses.replace(options, sample=sample), 2)
    for each in best.candidates:
        assert "--speed fast: expert and base" in each.generation.notices[-1]
        assert each.mean_logp == pytest.approx(np.mean([step.logp for step in each.steps]))


def test_fast_is_told_in_the_json_of_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["generate", "-p", QUESTION, "-n", "24", "-t", "1", "--speed", "fast", "--json"]
    assert run(flags) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["provenance"]["parameters"]["speed"] == "fast"
    assert any(line.startswith("--speed fast: expert and base") for line in told["warnings"])
    assert told["capt"]["speed"]["gated"] > 0
    assert run([*flags, "--top-logprobs", "2"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert any(line.startswith("--speed fast leaves") for line in told["warnings"])
    assert told["capt"]["speed"]["gated"] == 0


@pytest.mark.parametrize("verb", ["batch", "serve", "eval", "score"])
def test_verbs_whose_answers_are_records_have_no_speed(verb: str) -> None:
    assert run([verb, "--speed", "fast"]) == 2


def calls(runtime: Runtime) -> dict[str, int]:
    return {role: model.calls for role, model in runtime.models.items()}


@pytest.mark.parametrize("drafts", [nullcontext, eager])
def test_cancelled_in_the_middle_of_a_draft_all_models_stand_at_one_text(
    small: Runtime, monkeypatch: pytest.MonkeyPatch, drafts: Callable[[], Any]
) -> None:
    """In some batch behind the prompt, of each model in turn, after it was computed."""
    plain, _ = answered(small, COPY, Speed.EXACT_STEPS)
    with drafts():
        small.forget()
        begun = small.generate(COPY, OPTIONS, raw=True)
        begun.prepare()
        prompt = calls(small)
        assert list(begun) and begun.text == plain.text
        done = calls(small)
        for role, model in small.models.items():
            first, last = prompt[role] + 1, done[role]
            assert last - first >= 3
            for number in {first, (first + last) // 2, last - 1}:
                small.forget()
                begun = small.generate(COPY, OPTIONS, raw=True)
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
                    written = "".join(step.piece for step in begun)
                assert left <= 0 and begun.finish is FinishReason.INTERRUPTED
                assert plain.text.startswith(written) and written != plain.text
                nothing_is_left_of_drafts(begun._ensemble)
                assert answered(small, COPY, Speed.EXACT_STEPS)[0].text == plain.text


def test_cancelled_in_the_prompt_there_is_no_answer(small: Runtime) -> None:
    generation = small.generate("word " * 200, OPTIONS, raw=True, cancel=lambda: True)
    assert list(generation) == [] and generation.finish is FinishReason.INTERRUPTED


@pytest.mark.parametrize("recurrent", [("expert", "base"), ("target", "expert", "base")])
def test_models_that_cannot_go_back_write_the_same_without_drafts(
    tmp_path: Path, recurrent: tuple[str, ...]
) -> None:
    kinds = dict.fromkeys(("target", "expert", "base"), "llama") | dict.fromkeys(recurrent, "mamba")
    paths = [
        tiny_gguf(tmp_path / f"{role}.gguf", seed=seed, architecture=kind)
        for seed, (role, kind) in enumerate(kinds.items())
    ]
    options = dataclasses.replace(OPTIONS, max_tokens=12)
    load = LoadOptions(threads=1, context=256)
    with Runtime.open(Bundle.from_paths(*paths), load=load, check=False) as opened:
        plain = list(opened.generate("abc", options, speed=Speed.EXACT_STEPS, raw=True))
        told = opened.generate("abc", options, raw=True)
        assert [step.token for step in told] == [step.token for step in plain]
        assert not told.stats.drafted
