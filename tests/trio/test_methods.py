"""Every method on the real demo trio, and the published ones stepped by hand beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from capt_local import (
    GenerateOptions,
    LoadOptions,
    Method,
    Runtime,
)
from capt_local.alignment.paper import TokenStrings
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.store import find
from capt_local.decoding.baselines import Choices, Contrastive, PaperCapt, Unite, proxy_tuning

NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"
QUESTION = "What are the symptoms of asthma?"
PUBLISHED = [Method.CAPT_PAPER, Method.UNITE, Method.CONTRASTIVE]
LENGTH = 16


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def one_vocabulary() -> Iterator[Runtime]:
    """The demo's expert between two copies of its base: all of one vocabulary."""
    files = {role: model.path for role, model in find("demo").models.items()}
    bundle = Bundle.from_paths(files["base"], files["expert"], files["base"])
    with Runtime.open(bundle, load=LoadOptions(threads=1)) as opened:
        yield opened


def pure(runtime: Runtime, method: Method) -> Callable[..., Choices]:
    """The published algorithm, straight from its file."""
    strings = {
        role: TokenStrings(model.vocabulary, model.tokenize)
        for role, model in runtime.models.items()
    }
    if method is Method.PROXY_TUNING:
        return proxy_tuning
    if method is Method.UNITE:
        return Unite(strings["target"], strings["expert"]).generating
    if method is Method.CAPT_PAPER:
        return PaperCapt(strings["target"], strings["expert"], strings["base"]).generating
    return Contrastive().generating


def by_hand(
    runtime: Runtime, method: Method, text: str, tokens: list[int]
) -> Iterator[tuple[int, float]]:
    """The choice behind each beginning of an answer, and by how many nats it leads.

    Every model reads the whole text afresh. The text goes on from raw text, so each model's tokens
    are the canonical ones of all of it.
    """
    choose, roles = pure(runtime, method), method.roles
    assert roles is not None
    leading = runtime.models[roles[0]]
    start = list(runtime._prompt_builders[roles[0]].prompt(text, raw=True).tokens)
    for count in range(len(tokens)):
        answer = leading.vocabulary.text(tokens[:count])
        rows = []
        for role in roles:
            model = runtime.models[role]
            if model is leading or method in (Method.PROXY_TUNING, Method.CONTRASTIVE):
                own = start + tokens[:count]
            else:
                prompt = runtime._prompt_builders[role].prompt(text, raw=True)
                head = [t for segment in prompt.segments[:-1] for t in segment.tokens]
                whole = text.encode() + answer
                own = [*head, *runtime._tokenizers[role].encode(whole, start=True)]
            model.rewind(0)
            rows.append(model.extend(own, 1)[0].copy())
        made = choose(*rows)
        first, second = np.sort([*made.logp, -np.inf])[::-1][:2]
        yield made.best, float(first - second)
    for role in roles:
        runtime.models[role].rewind(0)
        runtime._caches[role].tokens.clear()


def check_by_hand(runtime: Runtime, method: Method) -> None:
    """Each choice of an answer is the one by hand, where that does not hang by the arithmetic.

    The 4-bit target reads token by token here and in one batch there: 8-bit activations then move
    its logits by up to 1.
    """
    runtime.forget()
    options = GenerateOptions(method=method, max_tokens=LENGTH)
    tokens = [step.token for step in runtime.generate(NOTE, options, raw=True)]
    found = list(by_hand(runtime, method, NOTE, tokens))
    clear = [(token, best) for token, (best, lead) in zip(tokens, found, strict=True) if lead > 1]
    assert len(clear) >= 4, "too many near-ties: choose another text"
    assert all(token == best for token, best in clear)


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_answer_is_that_of_its_function_stepped_by_hand(
    runtime: Runtime, method: Method
) -> None:
    check_by_hand(runtime, method)


@pytest.mark.parametrize("method", [each for each in Method if each is not Method.PROXY_TUNING])
@pytest.mark.parametrize("raw", [True, False])
def test_every_method_generates_and_scores(runtime: Runtime, method: Method, raw: bool) -> None:
    options = GenerateOptions(method=method, max_tokens=6, top=2)
    generation = runtime.generate(NOTE, options, raw=raw)
    steps = list(generation)
    assert 0 < len(steps) <= 6 and generation.text_bytes
    assert all(np.isfinite(step.logp) and step.logp <= 1e-6 for step in steps)
    got = runtime.score_answer(NOTE, b" treated with aspirin.", options, raw=raw)
    assert 0 < got.nats < 200
    chosen = runtime.choose(NOTE, [" treated with aspirin.", " zebra xylophone."], options, raw=raw)
    assert chosen.index == 0
    whole = runtime.score(NOTE.encode(), options)
    assert 0.3 < whole.nats / np.log(2) / whole.size < 8
