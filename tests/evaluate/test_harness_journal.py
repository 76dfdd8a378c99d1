"""The journal of an evaluation: nothing that was finished is lost, and no other run goes on."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from capt_local.errors import UsageError
from capt_local.evaluate.journal import Journal
from capt_local.evaluate.metrics import Outcome
from capt_local.evaluate.run import DOES_NOT_FIT, Result

FINGERPRINT = {"models": {"target": "aa"}, "alpha": None, "grid": (0.0, 1.0), "tasks": {}}
DONE = [
    Result("t", "capt", "1", Outcome({"accuracy": 1.0}, (2,), (2,)), decoded=20, seconds=0.5),
    Result("t", "target", "1", failed=DOES_NOT_FIT, cut=True),
    Result("p", "capt", "é", Outcome({"nats": 3.5, "bytes": 4.0}), tokens=3, unfinished=1),
]


def written(path: Path) -> Path:
    with Journal(path) as journal:
        journal.begin(FINGERPRINT)
        for result in DONE:
            journal.append(result)
    return path


def test_a_journal_gives_back_what_was_finished(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Journal(path) as journal:
        journal.begin(FINGERPRINT)
        assert journal.done == DONE


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_taken_off(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "r.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.done == DONE[:2]
        journal.begin(FINGERPRINT)
        journal.append(DONE[2])
    with Journal(path) as journal:
        assert journal.done == DONE


@pytest.mark.parametrize("kept", [0, 5, 19, 40])
def test_a_torn_first_line_is_begun_again(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "r.jsonl")
    path.write_bytes(path.read_bytes()[:kept])
    with Journal(path) as journal:
        journal.begin(FINGERPRINT)
        journal.append(DONE[0])
    with Journal(path) as journal:
        assert journal.done == DONE[:1]
        assert journal.fingerprint == json.loads(json.dumps(FINGERPRINT))


def test_another_run_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl")
    before = path.read_bytes()
    other = {**FINGERPRINT, "models": {"target": "bb", "expert": "cc"}, "alpha": 0.5}
    with Journal(path) as journal, pytest.raises(UsageError) as error:
        journal.begin(other)
    assert "differs: models.target, alpha, models.expert." in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "data",
    [
        b"zyzzyva-canary without an end",
        b"zyzzyva-canary\n",
        b'{"id": "zyzzyva-canary"}\n',
        b"[]\n",
        b'{"capt_local_eval": 1}\n',
        b'{"capt_local_eval": 2, "fingerprint": {}}\n',
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "zyzzyva-canary"
    path.write_bytes(data)
    path.chmod(0o644)
    with pytest.raises(UsageError, match=r"\(--results\)") as error:
        Journal(path)
    assert "zyzzyva" not in str(error.value)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "change",
    [
        {"failed": ""},
        {"failed": "", "values": {}, "predicted": [-1], "expected": []},
        {"failed": "", "values": {}, "predicted": ["1"], "expected": []},
        {"failed": "", "values": {"nats": "1"}, "predicted": [], "expected": []},
        {"failed": "", "values": {"nats": float("nan")}, "predicted": [], "expected": []},
        {"tokens": True},
        {"seconds": "1"},
        {"more": 1},
    ],
)
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = written(tmp_path / "r.jsonl")
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="line 3: not a result"):
        Journal(path)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl")
    with Journal(path), pytest.raises(UsageError, match="by another run"):
        Journal(path)
