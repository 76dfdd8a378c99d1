"""Shards as actors of a local Ray. The test that kills one in mid-run needs the extra `ray`."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from capt_local.cli.app import run
from capt_local.cli.batch.ray import wait_for
from capt_local.cli.batch.told import Told
from capt_local.cli.signals import Signals
from capt_local.report.screen import Screen
from tests.cli.test_batch import QUICK, notes, untimed

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray (240 MB) is an extra: pip install -e '.[test,ray]'",
)
COUNT = 24
# That of the worker: an actor is the parent of one.
WORKER = "capt_local.batch.worker"


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers of all actors of a run, which are no children of it."""
    found = []
    for child in psutil.process_iter(["cmdline", "environ"]):
        names = child.info["environ"] or {}
        if WORKER in " ".join(child.info["cmdline"] or ()) and names.get("RUN") == str(
            process.args
        ):
            found.append(child)
    return found


@with_ray
def test_a_killed_actor_goes_on_where_it_was(tmp_path: Path) -> None:
    place, output = notes(tmp_path / "in.jsonl", COUNT), tmp_path / "out.jsonl"
    arguments = ["batch", place, *QUICK, "--parallel", "2", "--date", "2026-01-02"]
    assert run([*arguments, "-o", str(tmp_path / "whole.jsonl")]) == 0
    command = [sys.executable, "-m", "capt_local", *arguments, "-o", str(output), "--ray", "2"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *sys.path]),
            "RUN": str(command),
        },
    )
    shard = tmp_path / "out.jsonl.shard-1-of-2"
    until = time.monotonic() + 120
    while not shard.exists() or shard.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    killed = [worker for worker in workers(process) if str(shard) in opened(worker.ppid())]
    assert len(killed) == 1
    actor = psutil.Process(killed[0].ppid())
    actor.kill()
    gone, _ = psutil.wait_procs(killed, timeout=30)
    assert gone == killed
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert b"shard 1/2: done." in err and b"shard 2/2: done." in err
    assert b"Traceback" not in err
    assert untimed(output) == untimed(tmp_path / "whole.jsonl")


def opened(pid: int) -> list[str]:
    """Files that a process has open."""
    return [file.path for file in psutil.Process(pid).open_files()]


class Died(Exception):
    """An actor has died too often."""


class FakeRay:
    """Shards that end one after the other, the last one first; None is one whose actor died."""

    exceptions = SimpleNamespace(RayError=Died)

    def __init__(self, codes: list[int | None]) -> None:
        self.codes = codes

    def wait(self, left: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return left[-1:], left[:-1]

    def get(self, number: int) -> tuple[int, str]:
        code = self.codes[number - 1]
        if code is None:
            raise Died
        return code, ""


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([0, 0], 0),
        ([0, 6, 0], 6),
        ([6, 143, 0], 143),
        ([3, 130, 6], 3),
        ([143, 6, 3], 3),
        ([4, 2, 143], 4),
        ([2, 4], 2),
        ([6, None, 143], 1),
    ],
)
def test_the_worst_of_all_shards_is_the_exit_code_whichever_ends_first(
    codes: list[int | None], worst: int
) -> None:
    told = Told(Screen(io.StringIO(), err := io.StringIO()))
    running = {number: number for number in range(1, len(codes) + 1)}
    with Signals() as signals:
        assert wait_for(FakeRay(codes), running, told, signals) == worst
    lines = err.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"shard {number}/{len(codes)}" for number in reversed(running)
    ]


def test_what_does_not_go_with_ray(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = notes(tmp_path / "in.jsonl", 2)
    arguments = ["batch", place, "-o", str(tmp_path / "out.jsonl"), "--ray", "2"]
    for more in (["--shard", "1/2"], ["--limit", "1"], ["--force-new"]):
        assert run([*arguments, *more]) == 2
        assert f"{more[0]} does not go with --ray." in capfd.readouterr().err
    assert run(["batch", "-", *arguments[2:]]) == 2
    assert "each shard reads it" in capfd.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_way_to_it_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    place = notes(tmp_path / "in.jsonl", 2)
    assert run(["batch", place, "-o", str(tmp_path / "out.jsonl"), "--ray", "2"]) == 2
    assert "pip install 'capt-local[ray]'" in capfd.readouterr().err
