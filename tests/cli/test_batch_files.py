"""`merge` and `audit`: verbs about the files of batch runs, which need no models."""

from __future__ import annotations

import json
from pathlib import Path

from tests.batch.runs import in_file
from tests.batch.test_audit import log
from tests.batch.test_merge import COUNT, ids, shards
from tests.cli.conftest import Run


def test_merge(run: Run, tmp_path: Path) -> None:
    parts = [str(path) for path in shards(tmp_path)]
    output = tmp_path / "merged"
    result = run("merge", *parts, "-o", str(output), "--json")
    assert result.code == 6 and in_file(output) == ids(COUNT)
    assert json.loads(result.out) == {"records": COUNT, "failed": 4, "shards": 3}
    assert result.err == "merged 40 records of 3 shards, 4 of them failed.\n"
    result = run("merge", *parts, "-o", str(output))
    assert result.code == 2 and "is there already" in result.err and "merged" not in result.err
    assert run("merge", *parts).code == 2 and run("merge", "-o", str(output)).code == 2
    result = run("merge", *parts[:2], "-o", str(tmp_path / "other"))
    assert result.code == 2 and "missing: 3/3" in result.err


def test_merge_compares_with_the_input(run: Run, tmp_path: Path) -> None:
    parts = [str(path) for path in shards(tmp_path)]
    notes = tmp_path / "notes.jsonl"
    lines = [json.dumps({"id": id, "prompt": "x"}) for id in ids(COUNT + 1)]
    notes.write_text("\n".join(lines))
    output = str(tmp_path / "merged")
    result = run("merge", *parts, "-o", output, "--input", str(notes))
    assert result.code == 2
    assert "1 of 41 records have no line yet, the first one in line 41" in result.err
    notes.write_text("\n".join(lines[:-1]))
    result = run("merge", *parts, "-o", output, "--input", str(notes))
    assert result.code == 2 and "line 1: changed since" in result.err


def test_audit(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "smith"
    heads = log(path, 3)
    result = run("audit", "verify", str(path))
    assert (result.code, result.out) == (0, f"3 entries, all whole; head {heads[2]}\n")
    assert run("audit", "verify", str(path), "--head", heads[0]).code == 0
    result = run("audit", "verify", str(path), "--head", "0" * 64)
    assert result.code == 6 and result.err == (
        "error: the audit log: no entry (of 3) has the head that was given: entries were cut off, "
        "or the log made anew.\n"
    )
    found = json.loads(run("audit", "verify", str(path), "--head", "0" * 64, "--json").out)
    assert (found["ok"], found["first_bad"], found["entries"]) == (False, None, 3)
    assert found["problem"] and found["head"] == heads[2]
    result = run("audit", "verify", str(path), "--head", "xyz")
    assert result.code == 2 and "64 hexadecimal digits" in result.err
    result = run("audit", "show", str(path))
    assert result.out.count("\n") == 3 and "end  run-2  demo  ok 2" in result.out
    lines = run("audit", "show", str(path), "--json").out.splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 2, 3]
    path.write_bytes(path.read_bytes().replace(b"run-2", b"run-7"))
    result = run("audit", "verify", str(path), "--json")
    assert result.code == 6 and "entry 2: it was changed" in result.err
    assert json.loads(result.out)["first_bad"] == 2
    assert run("audit", "show", str(path)).code == 6
    result = run("audit", "verify", str(tmp_path / "none"))
    assert result.code == 2 and "no such file" in result.err and "smith" not in result.err
