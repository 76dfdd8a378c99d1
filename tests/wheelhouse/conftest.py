"""A stick with a stub for the program, fresh for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.wheelhouse.stub import make_stick


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master") / "stick"
    make_stick(folder)
    return folder


@pytest.fixture
def stick(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "a stick"))
