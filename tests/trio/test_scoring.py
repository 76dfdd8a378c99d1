"""Known text in one pass on published weights, against the same text step by step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from capt_local.bundles.manifest import Bundle
from capt_local.decoding.options import CombineOptions, GenerateOptions, Method
from capt_local.decoding.prompt_weights import Evidence
from capt_local.llama.options import LoadOptions
from capt_local.runtime import Runtime
from tests import real_models
from tests.decoding.stepwise import text_nats

NOTE = (Path(__file__).parents[2] / "capt_local" / "data" / "bench_notes.txt").read_bytes()[:900]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    files = (real_models.demo_proxy(role) for role in ("expert", "base"))
    bundle = Bundle.from_paths(real_models.smollm2(), *files)
    with Runtime.open(bundle, load=LoadOptions(threads=1, context=512)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (GenerateOptions(method=Method.TARGET), 1e-3),
        (GenerateOptions(), 1e-3),
        # The quantized target is read in other batches, and each row counts in three places.
        (GenerateOptions(method=Method.EXPERT_LED, combine=CombineOptions(alphas=(0.5,))), 2e-3),
    ],
    ids=["target", "capt", "expert-led"],
)
def test_one_pass_gives_the_bits_per_byte_of_steps(
    runtime: Runtime, options: GenerateOptions, most: float
) -> None:
    score = runtime.score(NOTE, options)
    ensemble = runtime._begin(options, None, scoring=True)
    evidence = None
    if ensemble.mixes:
        evidence = Evidence(len(ensemble.exponents), options.combine.forgetting)
    nats, windows = text_nats(ensemble, runtime._tokenizers, NOTE, evidence)
    assert abs(score.nats - nats) / math.log(2) / len(NOTE) < most
    assert score.windows == windows
