"""The real demo trio: against llama.cpp's own answers, and what it is there to show."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
import pytest

from capt_local import CombineOptions, FinishReason, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.store import find
from capt_local.cli.generate import QUESTION, demo_note
from capt_local.decoding.options import Speed

llama_cpp = pytest.importorskip("llama_cpp")

NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"
ANSWER = b" given furosemide and admitted for heart failure."


@pytest.mark.parametrize(
    ("question", "raw"),
    [
        ("What are the symptoms of asthma?", False),
        ("Summarize: the patient is a 54-year-old man with chest pain for 2 days.", True),
        ("Was ist das? Temperatur 38,5 °C — \U0001f321", False),
    ],
)
def test_target_alone_is_the_greedy_answer_of_the_binding(
    demo: Runtime, question: str, raw: bool
) -> None:
    model = llama_cpp.Llama(
        str(find("demo").models["target"].path), n_ctx=512, n_threads=1, verbose=False
    )
    prompt = demo._prompt_builders["target"].prompt(question, raw=raw)
    ends = set(demo.models["target"].vocabulary.end_ids.tolist())
    wanted = []
    for token in islice(model.generate(list(prompt.tokens), temp=0.0, repeat_penalty=1.0), 48):
        wanted.append(token)
        if token in ends:
            break
    model.close()
    options = GenerateOptions(method=Method.TARGET, max_tokens=48, top=2)
    steps = list(demo.generate(question, options, raw=raw))
    # Another shape of a batch rounds otherwise, and 8-bit activations carry that up to 1 in the
    # logits: where the two go apart, the binding's token has to be our second, close behind.
    for step, token in zip(steps, wanted, strict=False):
        if step.token != token:
            second = step.top[1]
            assert second.token == token and step.top[0].logp - second.logp < 1.0
            break
    else:
        assert [step.token for step in steps] == wanted


@pytest.mark.parametrize(("role", "raw"), [("target", True), ("target", False), ("expert", True)])
def test_a_given_answer_has_the_log_softmax_of_the_bindings_logits(
    demo: Runtime, role: str, raw: bool
) -> None:
    model = llama_cpp.Llama(
        str(find("demo").models[role].path),
        n_ctx=512,
        n_threads=1,
        logits_all=True,
        verbose=False,
    )
    prompt = demo._prompt_builders[role].prompt(NOTE, raw=raw)
    front = list(prompt.tokens)
    if raw:  # the whole, as the binding's tokenizer has it
        head = front[: len(front) - len(prompt.segments[-1].tokens)]
        whole = [*head, *model.tokenize(NOTE.encode() + ANSWER, add_bos=False, special=False)]
        assert whole[: len(front)] == front
    else:
        whole = front + demo._tokenizers[role].encode(ANSWER, start=prompt.starts_text)
    model.eval(whole)
    rows = np.array(model.scores[len(front) - 1 : len(whole)], dtype=np.float64)
    model.close()
    rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
    answer = whole[len(front) :]
    wanted = -rows[np.arange(len(answer)), answer].sum()
    options = GenerateOptions(method=Method(role))
    got = demo.score_answer(NOTE, ANSWER, options, raw=raw)
    assert got.tokens == len(answer) and got.size == len(ANSWER)
    # 8-bit activations carry the rounding of another shape of a batch up to 1 in the logits of
    # the 4-bit target; expert and base are smaller, in 8 bits.
    near = {"rel": 3e-2, "abs": 1.0} if role == "target" else {"rel": 2e-3, "abs": 0.05}
    assert got.nats == pytest.approx(wanted, **near)
    ends = demo.models[role].vocabulary.end_ids
    ended = demo.score_answer(NOTE, ANSWER, options, raw=raw, end=True)
    assert ended.nats - got.nats == pytest.approx(
        -np.logaddexp.reduce(rows[len(answer)][ends]), **near
    )


@pytest.mark.parametrize("raw", [True, False])
def test_the_answer_that_was_generated_has_its_probability(demo: Runtime, raw: bool) -> None:
    options = GenerateOptions(max_tokens=16)
    generation = demo.generate(NOTE, options, raw=raw)
    steps = list(generation)
    got = demo.score_answer(NOTE, generation.text_bytes, options, raw=raw)
    assert got.tokens == len(steps)  # what was generated is the canonical tokens of its text
    # The answer is read in batches here, and was made token by token (see above).
    assert got.nats == pytest.approx(-sum(step.logp for step in steps), abs=0.5)
    assert got.greedy
    assert not demo.score_answer(NOTE, ANSWER, options, raw=raw).greedy


@pytest.mark.parametrize("method", [each for each in Method if each is not Method.PROXY_TUNING])
def test_every_method_generates_and_scores(demo: Runtime, method: Method) -> None:
    options, raw = GenerateOptions(method=method, max_tokens=6, top=2), method is Method.UNITE
    generation = demo.generate(NOTE, options, raw=raw)
    steps = list(generation)
    assert 0 < len(steps) <= 6 and generation.text_bytes
    assert all(np.isfinite(step.logp) and step.logp <= 1e-6 for step in steps)
    chosen = demo.choose(NOTE, [" treated with aspirin.", " zebra xylophone."], options, raw=raw)
    assert chosen.index == 0
    whole = demo.score(NOTE.encode(), options)
    assert 0.3 < whole.nats / np.log(2) / whole.size < 8


def test_expert_equal_to_base_is_the_target() -> None:
    files = {role: model.path for role, model in find("demo").models.items()}
    bundle = Bundle.from_paths(files["target"], files["base"], files["base"])
    how = {"max_tokens": 24, "speed": Speed.EXACT_STEPS}
    with Runtime.open(bundle, load=LoadOptions(threads=1, context=512)) as same:
        options = GenerateOptions(**how, combine=CombineOptions(alphas=(1.0,)))
        steps = list(same.generate(NOTE, options, raw=True))
        alone = same.generate(NOTE, GenerateOptions(method=Method.TARGET, **how), raw=True)
        assert [step.token for step in steps] == [step.token for step in alone]
    assert max(abs(step.contrast) for step in steps) < 1e-6


def test_the_demo_files_are_what_the_manifest_says() -> None:
    bundle = find("demo")
    assert set(bundle.models) == {"target", "expert", "base"}
    assert bundle.models["target"].package is not None  # not in our repository
    sizes = [bundle.models[role].path.stat().st_size for role in ("expert", "base")]
    assert sum(sizes) <= 28_000_000


def test_the_demo_shows_what_it_is_there_for(demo: Runtime) -> None:
    note, bundle = demo_note(), find("demo")
    asked = f"{note}\n\n{QUESTION}"
    options = GenerateOptions(max_tokens=128, combine=CombineOptions(alphas=bundle.defaults.alphas))
    together = demo.generate(asked, options)
    steps = list(together)
    alone = demo.generate(asked, GenerateOptions(max_tokens=128, method=Method.TARGET))
    list(alone)
    # The reason of the admission, in full sentences that end; nothing that the note does not say.
    assert "shortness of breath" in together.text and "furosemide" in together.text
    assert together.finish is FinishReason.STOP and len(steps) < 64
    assert 1 <= together.changed <= len(steps) // 2
    numbers = set(re.findall(r"\d+", together.text))
    assert numbers <= set(re.findall(r"\d+", note))
    assert alone.text != together.text
