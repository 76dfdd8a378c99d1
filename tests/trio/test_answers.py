"""Given answers on the real demo trio: against the binding's own logits, and what is shared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.store import find

NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"
ANSWER = b" given furosemide and admitted for heart failure."
CHOICES = [" admitted to the hospital.", " admitted to the garden.", " blue."]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("role", ["target", "expert", "base"])
def test_one_model_gives_the_log_softmax_of_the_bindings_logits(
    runtime: Runtime, role: str, raw: bool
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(find("demo").models[role].path),
        n_ctx=512,
        n_threads=1,
        logits_all=True,
        verbose=False,
    )
    prompt = runtime._prompt_builders[role].prompt(NOTE, raw=raw)
    front = list(prompt.tokens)
    if raw:  # the whole, as the binding's tokenizer has it
        head = front[: len(front) - len(prompt.segments[-1].tokens)]
        whole = [*head, *model.tokenize(NOTE.encode() + ANSWER, add_bos=False, special=False)]
        assert whole[: len(front)] == front
    else:
        whole = front + runtime._tokenizers[role].encode(ANSWER, start=prompt.starts_fresh)
    model.eval(whole)
    rows = np.array(model.scores[len(front) - 1 : len(whole)], dtype=np.float64)
    model.close()
    rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
    answer = whole[len(front) :]
    wanted = -rows[np.arange(len(answer)), answer].sum()
    options = GenerateOptions(method=Method(role))
    got = runtime.score_answer(NOTE, ANSWER, options, raw=raw)
    assert got.tokens == len(answer) and got.size == len(ANSWER)
    # 8-bit activations carry the rounding of another shape of a batch up to 1 in the logits of
    # the 4-bit target; expert and base are smaller, in 8 bits.
    near = {"rel": 3e-2, "abs": 1.0} if role == "target" else {"rel": 2e-3, "abs": 0.05}
    assert got.nats == pytest.approx(wanted, **near)
    ends = runtime.models[role].vocabulary.end_ids
    ended = runtime.score_answer(NOTE, ANSWER, options, raw=raw, end=True)
    assert ended.nats - got.nats == pytest.approx(
        -np.logaddexp.reduce(rows[len(answer)][ends]), **near
    )


@pytest.mark.parametrize("raw", [True, False])
def test_the_answer_that_was_generated_has_its_probability(runtime: Runtime, raw: bool) -> None:
    options = GenerateOptions(max_tokens=16)
    generation = runtime.generate(NOTE, options, raw=raw)
    steps = list(generation)
    got = runtime.score_answer(NOTE, generation.text_bytes, options, raw=raw)
    assert got.tokens == len(steps)  # what was generated is the canonical tokens of its text
    # The answer is read in batches here, and was made token by token (see above).
    assert got.nats == pytest.approx(-sum(step.logp for step in steps), abs=0.5)
    assert got.greedy
    assert not runtime.score_answer(NOTE, ANSWER, options, raw=raw).greedy
