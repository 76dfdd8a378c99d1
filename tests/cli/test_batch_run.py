"""`batch` with a worker without models: what is written, what is told, and in which order."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path

import pytest

from capt_local.cli import batch_run
from capt_local.line_file import LineFile
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
    (entry,) = held["starts"]
    assert (entry["devices"], entry["loaded"]) == (["CPU: a fake one"], {})
    assert entry["bundle"]["signer"] is None
    entry["devices"] = ["GPU0: another one"]
    manifest.write_text(json.dumps(held))
    result = place.batch()
    assert result.code == 0 and result.err.count("computes on other devices") == 1
    assert place.codes() == {"a": "ok", "b": "ok"}
    entries = json.loads(manifest.read_bytes())["starts"]
    assert [entry["devices"] for entry in entries] == [["GPU0: another one"], ["CPU: a fake one"]]
    assert [entry["loaded"] for entry in entries] == [{}, {}]
    assert [entry["summary"]["done"] for entry in entries] == [1, 1]


def test_a_check_tells_and_writes_nothing(place: Place) -> None:
    before = place.all()
    result = place.batch("--check")
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
    with contextlib.closing(LineFile(place.output, "The output")):
        assert "is being written by another run" in place.batch("--check").err
    assert place.batch("--check").code == 0


def test_the_summary_of_an_interrupted_run_replaces_no_earlier_one(place: Place) -> None:
    summary = Path(place.path("summary.json"))
    assert place.batch("--summary", str(summary), "--limit", "1").code == 0
    before = summary.read_bytes()
    place.write(a="one", b="two", c="interrupt", d="wait 60")
    result = place.batch("--summary", str(summary))
    assert result.code == 130 and " left: the same command goes on" in result.err
    assert summary.read_bytes() == before and "The summary (--summary) exists" in result.err
    summary.unlink()
    place.write(a="one", b="two", e="interrupt", f="wait 60")
    assert place.batch("--summary", str(summary)).code == 130
    assert json.loads(summary.read_bytes())["left"] > 0  # there was none to replace


def test_a_record_that_hangs_fails_and_the_others_go_on(place: Place) -> None:
    place.write(a="one", b="wait 3600", c="two")
    result = place.batch("--record-timeout", "3")
    assert result.code == 6 and place.codes() == {"a": "ok", "b": "timed_out", "c": "ok"}
    assert "it reported no progress for 3 s" in result.err


@pytest.mark.parametrize("flag", ["--summary", "--csv"])
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


def test_answers_without_sources_fail_and_a_table_is_written(place: Place) -> None:
    """The worker answers with the words backwards and a seed, which no prompt has."""
    place.write(a="aspirin 81 mg", b="two words")
    result = place.batch("--csv", place.path("table.csv"))
    assert result.code == 0
    table = (place.folder / "table.csv").read_text().splitlines()
    assert table[0] == "id,status,answer" and len(table) == 3 and "mg 81 aspirin" in table[1]
    lines = [json.loads(line) for line in place.output.read_bytes().splitlines()]
    assert {line["capt"]["sources"]["of"] for line in lines} == {"prompt"}
    place.output.unlink()
    result = place.batch("--require-sources", "--force-new", "--csv", place.path("table.csv"))
    assert result.code == 6 and set(place.codes().values()) == {"abstained"}
    assert place.batch("--csv", place.path("in.jsonl")).code == 2
