"""scripts/slurm_array.sh, with a program of the same name that notes how it was called."""

from __future__ import annotations

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

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_array.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
# Notes its arguments; ends as FOLDER/code says; waits for SIGTERM where FOLDER/wait is.
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
if (folder / "code").exists() and sys.argv[1] == "batch":
    sys.exit(int((folder / "code").read_text()))
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
        os.utime(folder / "in.jsonl", (1_700_000_000, 1_700_000_000))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        path = f"{self.folder / 'bin'}{os.pathsep}{kept['PATH']}"
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env={**kept, "PATH": path, "FOLDER": str(self.folder), "TZ": "UTC", **environment},
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **environment: str) -> int:
        process = self.start(*arguments, **environment)
        process.communicate(timeout=60)
        return process.returncode

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
    assert (call["date"], call["umask"]) == ("2023-11-14", 0o077)


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
