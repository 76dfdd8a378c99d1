"""The trio of the tests is small, whole and trained: its expert knows notes, its base does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.store import find
from tests.small_trio import SMALL_TRIO

NOTE = b"The patient is a 61-year-old woman who presents with shortness of breath. She was given"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open(SMALL_TRIO, load=LoadOptions(threads=1), check=True) as opened:
        yield opened


def test_all_that_belongs_to_it_is_less_than_a_megabyte() -> None:
    assert sum(file.stat().st_size for file in SMALL_TRIO.iterdir()) < 1_000_000
    assert set(find(SMALL_TRIO).models) == {"target", "expert", "base"}


def test_it_was_trained(runtime: Runtime) -> None:
    nats = {
        method: runtime.score(NOTE, GenerateOptions(method=method)).nats
        for method in (Method.TARGET, Method.EXPERT, Method.BASE, Method.CAPT)
    }
    assert nats[Method.EXPERT] < nats[Method.BASE]
    assert nats[Method.CAPT] < nats[Method.TARGET]
