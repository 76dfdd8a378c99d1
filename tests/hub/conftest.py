"""Tests with a hub on this machine: nothing else can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import pulls
from tests.hub.mirror import Mirror, running


@pytest.fixture(autouse=True)
def no_network() -> None:
    """This machine may be asked; that nobody else is, the guard in the interpreter sees to."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror that has what `pulls.RECIPE` asks for."""
    with running() as found:
        found.repositories.update(pulls.repositories())
        yield found


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe of three models without pins."""
    return pulls.write_recipe(tmp_path / "trio.toml")
