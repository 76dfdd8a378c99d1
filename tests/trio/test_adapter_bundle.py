"""The published model with our clinical adapter: one copy of weights in three roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from tests.real_models import smollm2

BUNDLE = Path(__file__).resolve().parents[2] / "models" / "smollm2-clinical"
NOTE = (
    "HISTORY OF PRESENT ILLNESS: The patient is a 58-year-old gentleman who presents with a "
    "three-day history of productive cough, fever and chills. He denies any chest pain, nausea "
    "or vomiting. PAST MEDICAL HISTORY: Significant for hypertension and hyperlipidemia."
)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    smollm2()  # skips where the package is not installed
    with Runtime.open(BUNDLE, load=LoadOptions(threads=1, context=512)) as opened:
        yield opened


def nats(runtime: Runtime, method: Method, alpha: float | None = None) -> float:
    combine = CombineOptions(alphas=() if alpha is None else (alpha,), plausibility=0.0)
    options = GenerateOptions(method=method, combine=combine)
    return runtime.score_answer("", NOTE.encode(), options, raw=True).nats


def test_the_adapter_knows_notes_better_than_the_model(runtime: Runtime) -> None:
    assert nats(runtime, Method.EXPERT) < 0.85 * nats(runtime, Method.TARGET)


def test_with_the_base_as_target_and_alpha_1_capt_is_the_expert(runtime: Runtime) -> None:
    # T E / A with T = A (METHOD: one shared vocabulary gives proxy tuning).
    expert = nats(runtime, Method.EXPERT)
    assert nats(runtime, Method.CAPT, 1.0) == pytest.approx(expert, rel=1e-2)
