from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from capt_local.batch.journal import Journal, JournalBroken
from capt_local.batch.manifest import RunFacts
from capt_local.batch.shard import Shard
from capt_local.errors import UsageError
from tests.batch.runs import NOTE, beside, fingerprint, ids, in_file, line, run, untimed


def test_a_run_writes_each_record_once_and_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(5))
    first = output.read_bytes()
    assert in_file(output) == ids(5)
    journal = run(output, ids(12))
    assert output.read_bytes().startswith(first)
    assert in_file(output) == ids(12)
    assert journal.done["note-9"] == "context_overflow" and journal.done["note-1"] == "ok"
    assert journal.notices == []
    assert beside(output) == ["run.json"]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_finished_record_is_refused_a_second_line(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "o", fingerprint()) as journal:
        journal.append(line("note-1", fingerprint()))
        with pytest.raises(ValueError, match="already"):
            journal.append(line("note-1", fingerprint()))


def test_another_setting_is_refused_and_named_without_texts(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(output, ids(2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = fingerprint(
        Shard(1, 2),
        parameters={"max_tokens": 32, "sample": {"seed": 0, "temperature": 0.0}},
        prompt={"template": NOTE, "system": "cd" * 32},
        method="target",
    )
    with pytest.raises(UsageError) as error:
        run(output, ids(2), other)
    assert (
        "what differs: method, parameters.max_tokens (16, now 32), prompt.template, shard. Use"
    ) in str(error.value)
    assert NOTE not in str(error.value)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
