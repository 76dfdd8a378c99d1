"""`batch` with a worker without models: what is written, what is told, and in which order."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.journal import read_manifest
from capt_local.cli import batch_run
from tests.batch.fake_input import start_worker
from tests.cli.conftest import Result, Run

CANARY = "zyzzyva-canary"


class Place:
    """A folder with an input; runs batch there.

    Attributes:
        folder: of everything.
        output: where lines go.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self._run = folder, run
        self.output = folder / "out.jsonl"
        self.write(a="one", b="two")

    def write(self, **prompts: str) -> None:
        lines = [json.dumps({"id": id, "prompt": text}) for id, text in prompts.items()]
        (self.folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def batch(self, *more: str, input: str = "in.jsonl") -> Result:
        given = ["batch", str(self.folder / input), "-o", str(self.output), "-t", "1"]
        result = self._run(*given, "--parallel", "1", *more)
        assert CANARY not in result.err + result.out and "Traceback" not in result.err
        return result

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def all(self) -> dict[str, bytes]:
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def codes(self) -> dict[str, str]:
        lines = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        return {line["id"]: line["error"]["code"] if line["error"] else "ok" for line in lines}

    def last(self) -> dict[str, Any]:
        manifest = read_manifest(self.output)
        assert manifest is not None
        return dict(manifest.last)

    def events(self) -> list[tuple[str, Any]]:
        lines = Path(self.path("log")).read_bytes().splitlines()
        entries = [json.loads(line) for line in lines]
        return [(entry["event"], entry["exit_code"]) for entry in entries]


@pytest.fixture
def place(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = tmp_path / "place"
    folder.mkdir()
    start = functools.partial(start_worker, tmp_path)
    monkeypatch.setattr(batch_run, "start_worker", start)
    return Place(folder, run)


def test_a_resume_that_is_refused_has_written_nothing(place: Place) -> None:
    place.write(a="one", b="refuse")
    assert place.batch().code == 6
    place.write(a=f"other {CANARY}", b="refuse", c="three")
    before = place.all()
    result = place.batch()
    assert result.code == 2 and "line 1: changed since its line was written" in result.err
    assert place.all() == before
    place.write(a="one", b="corrected")
    assert place.batch().code == 2 and place.batch("--retry-errors").code == 0
    assert place.codes() == {"a": "ok", "b": "ok"}


def test_a_run_that_goes_on_elsewhere_says_so(place: Place) -> None:
    assert place.batch("--limit", "1").code == 0
    manifest = place.folder / "out.jsonl.run.json"
    held = json.loads(manifest.read_bytes())
    (entry,) = held["provenance"]
    assert (entry["devices"], entry["loaded"]) == (["CPU: a fake one"], {})
    assert entry["bundle"]["signer"] is None
    entry["devices"] = ["GPU0: another one"]
    manifest.write_text(json.dumps(held))
    result = place.batch()
    assert result.code == 0 and result.err.count("computes on other devices") == 1
    assert place.codes() == {"a": "ok", "b": "ok"}
    entries = json.loads(manifest.read_bytes())["provenance"]
    assert [entry["devices"] for entry in entries] == [["GPU0: another one"], ["CPU: a fake one"]]
    assert [entry["loaded"] for entry in entries] == [{}, {}]


def test_a_check_tells_and_writes_nothing(place: Place) -> None:
    before = place.all()
    result = place.batch("--check", "--audit", place.path("log"))
    assert result.code == 0 and place.all() == before
    assert "2 records in the input; 0 are done, 2 to be done" in result.err
    assert place.batch("--limit", "1").code == 0
    before = place.all()
    result = place.batch("--check", "--json")
    assert json.loads(result.out) == {
        "records": 2, "already_done": 1, "left": 1, "skipped": 0, "torn_bytes": 0
    }  # fmt: skip
    assert "0 are done" in place.batch("--check", "--force-new").err
    result = place.batch("--check", "--temp", "1")
    assert result.code == 2 and "what differs: parameters.sample.temperature" in result.err
    place.write(a="changed", b="two")
    assert "line 1: changed since" in place.batch("--check").err
    place.write(a=" ")
    assert "line 1: the prompt is empty" in place.batch("--check").err
    assert place.batch("--check", "--summary", place.path("s")).code == 2
    assert {name: data for name, data in place.all().items() if name != "in.jsonl"} == {
        name: data for name, data in before.items() if name != "in.jsonl"
    }


def test_a_check_sees_a_run_that_goes_on(place: Place) -> None:
    assert place.batch().code == 0
    manifest = read_manifest(place.output)
    assert manifest is not None
    from capt_local.batch.journal import Lock

    lock = Lock(place.output)
    assert "is being written by another run" in place.batch("--check").err
    lock.release()
    assert place.batch("--check").code == 0


def test_a_record_that_hangs_fails_and_the_others_go_on(place: Place) -> None:
    place.write(a="one", b="wait 3600", c="two")
    result = place.batch("--record-timeout", "3")
    assert result.code == 6 and place.codes() == {"a": "ok", "b": "timed_out", "c": "ok"}
    assert "it reported no progress for 3 s" in result.err


def test_the_audit_log_has_start_and_end_of_each_run_and_no_text(place: Place) -> None:
    place.write(a=CANARY, b="refuse")
    assert place.batch("--audit", place.path("log"), "--limit", "1").code == 0
    with Path(place.path("log")).open("ab") as log:
        log.write(b'{"event": "torn')  # a machine that lost power
    assert place.batch("--audit", place.path("log")).code == 6
    lines = Path(place.path("log")).read_bytes().splitlines()
    assert len(lines) == 5 and b"torn" in lines[2] and CANARY.encode() not in b"".join(lines)
    entries = [json.loads(line) for line in (*lines[:2], *lines[3:])]
    assert [entry["event"] for entry in entries] == ["start", "end"] * 2
    assert len({entry["run"] for entry in entries}) == 1
    assert [entry["counts"] for entry in entries] == [
        {"records": 1}, {"records": 1, "ok": 1}, {"records": 1},
        {"records": 1, "ok": 0, "numerical_error": 1},
    ]  # fmt: skip
    assert [entry["exit_code"] for entry in entries] == [None, 0, None, 6]
    assert Path(place.path("log")).stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_is_refused_before_anything_starts(place: Place) -> None:
    Path(place.path("link")).symlink_to("/dev/null")
    for path in (place.path("none/log"), place.path("link"), str(place.folder)):
        result = place.batch("--audit", path)
        assert result.code == 2 and "--audit" in result.err
    assert not place.output.exists()


@pytest.mark.parametrize("flag", ["--summary", "--audit"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.run.json", "in.jsonl", "system.txt"])
def test_what_is_written_beside_the_output_has_a_place_of_its_own(
    run: Run, tmp_path: Path, flag: str, name: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "prompt": "What is it?"}\n')
    (tmp_path / "system.txt").write_text("Be brief.\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = [str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    given += ["--system-file", str(tmp_path / "system.txt"), flag, str(tmp_path / name)]
    result = run("batch", *given)
    assert result.code == 2
    assert flag in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
