"""Two trios of real files, each opened once: the demo's, and the small one of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from capt_local import LoadOptions, Runtime
from tests.small_trio import SMALL_TRIO


@pytest.fixture(scope="session")
def opened_demo() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="session")
def opened_small() -> Iterator[Runtime]:
    with Runtime.open(SMALL_TRIO, load=LoadOptions(threads=1)) as opened:
        yield opened


@pytest.fixture
def demo(opened_demo: Runtime) -> Runtime:
    """Its target is SmolLM2-135M: for what only a published model shows."""
    opened_demo.forget()
    return opened_demo


@pytest.fixture
def small(opened_small: Runtime) -> Runtime:
    """Less than 1 MB: for what any models show."""
    opened_small.forget()
    return opened_small
