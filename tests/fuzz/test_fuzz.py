"""Readers of files that come from elsewhere, fuzzed for some seconds each; see `tests.fuzz.run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.run import NAMES
from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2
SEEDS = [each for each in sorted(CORPUS.rglob("*")) if each.is_file()]
# Files that are to be refused; of the others, the first of each target is taken.
TAKEN = ["header/tensors", "header/vocabulary", "header/scalars", "archive/of-3", "archive/of-1",
         "manifest/of-3", "lines/short", "table/quoted", "value/kinds"]  # fmt: skip


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "place", lambda: tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.relative_to(CORPUS).as_posix())
def test_a_file_of_the_corpus_is_known_or_refused(seed: Path) -> None:
    known = TARGETS[seed.parent.name](seed.read_bytes())
    assert known or seed.relative_to(CORPUS).as_posix() not in TAKEN


@pytest.mark.parametrize("target", NAMES)
def test_fuzzing_for_some_seconds_finds_nothing(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", target, "--seconds", str(SECONDS),
         "--keep", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{target}: ")


def test_a_fault_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.fuzz import run

    monkeypatch.setitem(TARGETS, "value", lambda data: 1 // (b"NaN" not in data) > 0)
    with pytest.raises(ZeroDivisionError):
        run.by_mutations("value", 20, 1, tmp_path)
    assert [each.name.split("-")[:2] for each in tmp_path.iterdir()] == [["fault", "value"]]
