"""scripts/slurm_array.sh, with a program of the same name that notes how it was called."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.output import Origin
from capt_local.decode.step import FinishReason
from capt_local.report.json import Answer, answer_object
from tests.batch.runs import asked, fingerprint, ids, line

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_array.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
# Notes its arguments; ends as FOLDER/code says, or as FOLDER/code-N does for shard N; waits for
# SIGTERM where FOLDER/wait is. What it is to write gets a line.
FAKE = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
if (folder / "wait").exists() and sys.argv[1] == "batch":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
call = {{"arguments": sys.argv[1:], "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "date": os.environ.get("CAPT_LOCAL_DATE"), "umask": os.umask(0)}}
(folder / f"call-{{os.getpid()}}").write_text(json.dumps(call))
if (folder / "wait").exists() and sys.argv[1] == "batch":
    time.sleep(60)
output = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
if not output.exists() or (folder / "more").exists() or sys.argv[1] == "merge":
    output.write_text("a line")
if sys.argv[1] == "batch":
    shard = sys.argv[sys.argv.index("--shard") + 1].partition("/")[0]
    for name in (f"code-{{shard}}", "code"):
        if (folder / name).exists():
            sys.exit(int((folder / name).read_text()))
"""


class Place:
    """A folder with the fake program; runs the script there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin" / "capt-local"
        program.parent.mkdir()
        program.write_text(FAKE)
        program.chmod(0o755)
        (folder / "in.jsonl").write_text("{}\n")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        path = f"{self.folder / 'bin'}{os.pathsep}{kept['PATH']}"
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env={**kept, "PATH": path, "FOLDER": str(self.folder), **environment},
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **environment: str) -> int:
        process = self.start(*arguments, **environment)
        process.communicate(timeout=60)
        return process.returncode

    def forget(self) -> None:
        """Forgets the calls."""
        for path in self.folder.glob("call-*"):
            path.unlink()

    def calls(self) -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in self.folder.glob("call-*")]
        return sorted(found, key=lambda call: str(call["arguments"]))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_task_does_its_shard(place: Place) -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    (place.folder / "code").write_text("6")
    more = {"SLURM_CPUS_PER_TASK": "4"}
    assert place.run("in.jsonl", "out.jsonl", "-n", "9", **environment, **more) == 6
    (call,) = place.calls()
    assert call["arguments"] == [
        "batch", "in.jsonl", "-o", "out.jsonl.shard-3-of-8", "--shard", "3/8", "-t", "4", "-n", "9",
    ]  # fmt: skip
    assert (call["date"], call["umask"]) == (datetime.date.today().isoformat(), 0o077)


def test_some_tasks_are_done_again_as_parts_of_the_same_whole(place: Place) -> None:
    environment = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SHARDS": "8"}
    assert place.run("in.jsonl", "out.jsonl", **environment, CAPT_LOCAL_DATE="2026-01-02") == 0
    (call,) = place.calls()
    assert call["arguments"][3:] == ["out.jsonl.shard-7-of-8", "--shard", "7/8"]
    assert call["date"] == "2026-01-02"


def test_without_slurm_each_gpu_has_a_process_and_they_are_merged(place: Place) -> None:
    assert place.run("in.jsonl", "out.jsonl", "-n", "9", CUDA_VISIBLE_DEVICES="2,5") == 0
    first, second, merged = place.calls()
    assert (first["gpu"], second["gpu"]) == ("2", "5")
    assert [call["arguments"][5] for call in (first, second)] == ["1/2", "2/2"]
    assert merged["arguments"] == [
        "merge", "out.jsonl.shard-1-of-2", "out.jsonl.shard-2-of-2", "-o", "out.jsonl",
        "--input", "in.jsonl",
    ]  # fmt: skip


def test_the_date_is_that_of_the_first_start(place: Place) -> None:
    (place.folder / "out.jsonl.date").write_text("2026-02-03\n")
    os.utime(place.folder / "in.jsonl", (1_700_000_000, 1_700_000_000))
    for task in ("1", "2"):
        place.run("in.jsonl", "out.jsonl", SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
    assert [call["date"] for call in place.calls()] == ["2026-02-03"] * 2
    assert sorted(path.name for path in place.folder.glob("*date*")) == ["out.jsonl.date"]


def test_tasks_that_start_together_agree_on_the_date(place: Place) -> None:
    tasks = [
        place.start("in.jsonl", "o", SLURM_ARRAY_TASK_ID=str(n), SLURM_ARRAY_TASK_COUNT="6")
        for n in range(1, 7)
    ]
    for task in tasks:
        task.communicate(timeout=60)
    assert [task.returncode for task in tasks] == [0] * 6
    assert len({call["date"] for call in place.calls()}) == 1 and len(place.calls()) == 6
    assert [path.name for path in place.folder.glob("o.date*")] == ["o.date"]


def test_merge_is_told_how_the_input_is_read(place: Place) -> None:
    how = ["--template", "a b.txt", "--id-field=note id", "--input-format", "csv"]
    more = ["--delimiter", "semicolon", "--system", "s.txt", "--raw"]
    given = ["-n", "9", *how, "--temp", "0", *more]
    assert place.run("in.jsonl", "out.jsonl", *given, CUDA_VISIBLE_DEVICES="0,1") == 0
    merged = place.calls()[-1]["arguments"]
    assert merged[:7] == [
        "merge", "out.jsonl.shard-1-of-2", "out.jsonl.shard-2-of-2", "-o", "out.jsonl",
        "--input", "in.jsonl",
    ]  # fmt: skip
    assert merged[7:] == [*how, *more]
    place.forget()
    (place.folder / "out.jsonl").unlink()
    assert place.run("in.jsonl", "out.jsonl", *given, MERGE="1", SHARDS="2") == 0
    (call,) = place.calls()
    assert call["arguments"] == merged


def test_what_was_merged_is_merged_again_only_where_a_shard_has_changed(place: Place) -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert place.run("in.jsonl", "out.jsonl", **gpus) == 0
    place.forget()
    assert place.run("in.jsonl", "out.jsonl", **gpus) == 0
    assert [call["arguments"][0] for call in place.calls()] == ["batch", "batch"]
    place.forget()
    (place.folder / "more").touch()
    time.sleep(0.05)
    assert place.run("in.jsonl", "out.jsonl", **gpus) == 0
    assert place.calls()[-1]["arguments"][-1] == "--force-new"


@pytest.mark.parametrize(("last", "code"), [(8, 0), (9, 6)])
@pytest.mark.parametrize("how", [{"MERGE": "1", "SHARDS": "1"}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_what_was_merged_before_ends_as_that_merge_did(
    place: Place, last: int, code: int, how: dict[str, str]
) -> None:
    (place.folder / "code").write_text(str(code))
    origin, failed = Origin(fingerprint()), '{"error": {"code": "x"}} "error": {'
    answer = Answer((), failed.encode(), FinishReason.STOP, "demo", created=0)
    lines = [origin.answered(asked("note-1"), answer_object(answer), 0.0)]
    lines += [line(id, fingerprint()) for id in ids(last)[1:]]
    (place.folder / "out.jsonl.shard-1-of-1").write_text("a line")
    time.sleep(0.05)
    (place.folder / "out.jsonl").write_bytes(b"".join(each.encode() + b"\n" for each in lines))
    assert place.run("in.jsonl", "out.jsonl", **how) == code
    assert not any(call["arguments"][0] == "merge" for call in place.calls())


@pytest.mark.parametrize(
    ("codes", "worst"),
    [((3, 6), 3), ((6, 3), 3), ((143, 2), 2), ((2, 143), 2), ((6, 0), 6), ((143, 6), 143)],
)
def test_the_worst_of_all_shards_is_told(place: Place, codes: tuple[int, int], worst: int) -> None:
    for number, code in enumerate(codes, 1):
        (place.folder / f"code-{number}").write_text(str(code))
    assert place.run("in.jsonl", "out.jsonl", CUDA_VISIBLE_DEVICES="0,1") == worst


@pytest.mark.parametrize(("code", "merges"), [(6, True), (2, False), (143, False)])
def test_failed_records_are_merged_and_failed_shards_are_not(
    place: Place, code: int, merges: bool
) -> None:
    (place.folder / "code").write_text(str(code))
    assert place.run("in.jsonl", "out.jsonl", CUDA_VISIBLE_DEVICES="0,1") == code
    assert any(call["arguments"][0] == "merge" for call in place.calls()) == merges


def test_a_signal_reaches_all_processes(place: Place) -> None:
    (place.folder / "wait").touch()
    process = place.start("in.jsonl", "out.jsonl", CUDA_VISIBLE_DEVICES="0,1")
    until = time.monotonic() + 30
    while len(list(place.folder.glob("call-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert len(place.calls()) == 2


def test_it_says_how_it_is_used(place: Place) -> None:
    assert place.run("in.jsonl") == 2
    assert place.run("in.jsonl", "out.jsonl", CUDA_VISIBLE_DEVICES="") != 0
    assert not place.calls()
