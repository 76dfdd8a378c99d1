"""`models clean`, and what `doctor` says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.bundles import staging, store
from capt_local.bundles.staging import Staging
from tests.cli.conftest import Run


@pytest.fixture
def left() -> Path:
    folder = store.staging_folder() / "mine"
    folder.mkdir(parents=True)
    (folder / "target.gguf").write_bytes(b"x" * (3 << 20))
    return folder


def test_nothing_is_deleted_without_a_yes(left: Path, run: Run) -> None:
    result = run("models", "clean")
    assert (result.code, result.out) == (2, "")
    assert "mine (3.0 MiB)" in result.err and left.exists()


def test_with_a_yes(left: Path, run: Run) -> None:
    result = run("models", "clean", "--yes")
    assert (result.code, result.err) == (0, "")
    assert result.out == "What was left of mine is deleted: 3.0 MiB.\n"
    assert not left.exists()
    assert run("models", "clean").out == "Nothing is left of imports that were stopped.\n"


def test_what_is_being_imported_stays(left: Path, run: Run) -> None:
    with Staging(store.user_folder() / "mine"):
        result = run("models", "clean", "--yes")
    assert (result.code, result.out.startswith("Nothing is left")) == (0, True)
    assert "mine is being imported right now" in result.err and left.exists()


def test_doctor_tells_what_is_left(left: Path, run: Run) -> None:
    found = json.loads(run("doctor", "--json").out)
    assert found["store"]["left of stopped imports"] == "mine (3 MiB)"
    assert any("models clean" in line for line in found["warnings"])


def test_doctor_does_not_call_stopped_what_may_be_at_work(
    left: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise NotImplementedError  # as on a file system without locks

    (left.parent / "mine.lock").write_text("")
    monkeypatch.setattr(staging, "_lock", without)
    found = json.loads(run("doctor", "--json").out)
    assert any("mine (3 MiB). Whether one is at work" in line for line in found["warnings"])
    result = run("models", "clean", "--yes")
    assert (result.code, result.out) == (3, "") and left.exists()
    assert "cannot be known on this system" in result.err
