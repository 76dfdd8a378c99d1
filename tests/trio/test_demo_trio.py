"""The real demo trio: against llama.cpp's own answers, and the identities on real vocabularies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import islice

import pytest

from capt_local import (
    CombineOptions,
    FinishReason,
    GenerateOptions,
    LoadOptions,
    Method,
    Runtime,
)
from capt_local.bundles.store import find
from capt_local.cli.demo import QUESTION, demo_note
from capt_local.decoding.options import Speed

QUESTIONS = [
    "What are the symptoms of asthma?",
    "Summarize: the patient is a 54-year-old man with chest pain for 2 days.",
    "Was ist das? Temperatur 38,5 °C — \U0001f321",
]
NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


def answer(runtime: Runtime, prompt: str, options: GenerateOptions, *, raw: bool = False):
    generation = runtime.generate(prompt, options, raw=raw)
    return list(generation), generation


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("raw", [True, False])
def test_target_alone_is_the_greedy_answer_of_the_binding(
    runtime: Runtime, question: str, raw: bool
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(find("demo").models["target"].path), n_ctx=512, n_threads=1, verbose=False
    )
    prompt = runtime._prompt_builders["target"].prompt(question, raw=raw)
    ends = set(runtime.models["target"].vocabulary.end_ids.tolist())
    wanted = []
    for token in islice(model.generate(list(prompt.tokens), temp=0.0, repeat_penalty=1.0), 48):
        wanted.append(token)
        if token in ends:
            break
    model.close()
    options = GenerateOptions(method=Method.TARGET, max_tokens=48, top=2)
    steps, _ = answer(runtime, question, options, raw=raw)
    # Another shape of a batch rounds otherwise, and 8-bit activations carry that up to 1 in the
    # logits: where the two go apart, the binding's token has to be our second, close behind.
    for step, token in zip(steps, wanted, strict=False):
        if step.token != token:
            second = step.top[1]
            assert second.token == token and step.top[0].logp - second.logp < 1.0
            break
    else:
        assert [step.token for step in steps] == wanted


def test_expert_equal_to_base_is_the_target() -> None:
    files = {role: model.path for role, model in find("demo").models.items()}
    from capt_local.bundles.manifest import Bundle

    bundle = Bundle.from_paths(files["target"], files["base"], files["base"])
    with Runtime.open(bundle, load=LoadOptions(threads=1)) as same:
        how = {"max_tokens": 32, "speed": Speed.EXACT_STEPS}
        options = GenerateOptions(**how, combine=CombineOptions(alphas=(1.0,)))
        steps, _ = answer(same, NOTE, options, raw=True)
        alone, _ = answer(same, NOTE, GenerateOptions(method=Method.TARGET, **how), raw=True)
    assert [step.token for step in steps] == [step.token for step in alone]
    assert max(abs(step.contrast) for step in steps) < 1e-6


def test_one_model_in_all_roles_is_proxy_tuning_over_one_vocabulary() -> None:
    """Three contexts, one vocabulary: logits combine as softmax(l_T + alpha (l_E - l_A))."""
    from capt_local.bundles.manifest import Bundle
    from capt_local.llama.model import LlamaModel
    from tests.fakes import softmax

    files = {role: model.path for role, model in find("demo").models.items()}
    bundle = Bundle.from_paths(files["base"], files["expert"], files["base"])
    options = GenerateOptions(
        max_tokens=12, combine=CombineOptions(alphas=(1.0,), plausibility=0.0)
    )
    with Runtime.open(bundle, load=LoadOptions(threads=1)) as runtime:
        generation = runtime.generate(NOTE, options, raw=True)
        steps = list(generation)
    # With target = base and alpha = 1 the combination is the expert itself, token by token.
    with LlamaModel.open(files["expert"], LoadOptions(threads=1)) as expert:
        tokens = [expert.vocabulary.bos, *expert.tokenize(NOTE.encode(), special=False)]
        for step in steps:
            expert.rewind(0)
            row = softmax(expert.extend(tokens, 1)[0])
            assert step.token == int(row.argmax())
            assert math.isclose(step.logp, math.log(row[step.token]), abs_tol=0.02)
            tokens.append(step.token)


def test_the_expert_changes_the_answer_towards_itself(runtime: Runtime) -> None:
    steps, generation = answer(runtime, NOTE, GenerateOptions(max_tokens=40, top=3), raw=True)
    assert 0 < generation.changed <= len(steps)
    assert sum(weight for _, weight in generation.weights) == pytest.approx(1.0)
    assert generation.evidence_tokens > 5
    for step in steps:
        if step.changed:
            assert step.target_rank > 0 and step.target_choice.token != step.token
            assert step.target_choice.logp >= step.target_logp


def test_cancelling_in_the_prompt_and_in_the_answer(runtime: Runtime) -> None:
    generation = runtime.generate("word " * 200, GenerateOptions(), raw=True, cancel=lambda: True)
    assert list(generation) == [] and generation.finish is FinishReason.INTERRUPTED
    seen: list[int] = []
    generation = runtime.generate(
        NOTE, GenerateOptions(max_tokens=50), raw=True, cancel=lambda: len(seen) >= 5
    )
    for step in generation:
        seen.append(step.token)
    assert len(seen) == 5 and generation.finish is FinishReason.INTERRUPTED
    texts = {
        cached.model.vocabulary.text(cached.tokens).strip() for cached in runtime._caches.values()
    }
    assert len(texts) == 1


def test_the_demo_files_are_what_the_manifest_says() -> None:
    bundle = find("demo")
    assert set(bundle.models) == {"target", "expert", "base"}
    assert bundle.models["target"].package is not None  # not in our repository
    sizes = [bundle.models[role].path.stat().st_size for role in ("expert", "base")]
    assert sum(sizes) <= 28_000_000


def test_the_demo_shows_what_it_is_there_for(runtime: Runtime) -> None:
    note, bundle = demo_note(), find("demo")
    asked = f"{note}\n\n{QUESTION}"
    options = GenerateOptions(max_tokens=128, combine=CombineOptions(alphas=bundle.defaults.alphas))
    own = GenerateOptions(max_tokens=128, method=Method.TARGET)
    together, made = answer(runtime, asked, options)
    _, alone = answer(runtime, asked, own)
    # The reason of the admission, in full sentences that end; nothing that the note does not say.
    assert "shortness of breath" in made.text and "furosemide" in made.text
    assert made.finish is FinishReason.STOP and len(together) < 64
    assert 1 <= made.changed <= len(together) // 2
    numbers = set(re.findall(r"\d+", made.text))
    assert numbers <= set(re.findall(r"\d+", note))
    assert alone.text != made.text
