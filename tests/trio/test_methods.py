"""Every method on the real demo trio."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from capt_local import GenerateOptions, LoadOptions, Method, Runtime

NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


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
