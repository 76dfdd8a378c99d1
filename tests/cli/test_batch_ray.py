"""`batch --ray` on a Ray of this machine (the extra `ray`): same answers, also when actors die."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import psutil
import pytest

from capt_local.cli.app import run
from tests.cli.test_batch import QUICK, notes, started, untimed, wait_for_lines

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray (240 MB) is an extra: pip install -e '.[test,ray]'",
)


def workers(name: str) -> list[psutil.Process]:
    """The worker processes of all actors of a run, which are no children of it."""
    found = []
    for process in psutil.process_iter():
        try:
            command, environment = " ".join(process.cmdline()), process.environ()
        except psutil.Error:
            continue
        if "batch.worker" in command and environment.get("RUN") == name:
            found.append(process)
    return found


@pytest.mark.slow
@with_ray
def test_a_killed_actor_loses_nothing_and_answers_are_the_same(tmp_path: Path) -> None:
    place, output = notes(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    arguments = ["batch", place, *QUICK, "--parallel", "2", "--date", "2026-01-02"]
    assert run([*arguments, "-o", str(tmp_path / "whole.jsonl")]) == 0
    more = ["-o", str(output), "--ray", "local", "--ray-actors", "2"]
    name = str(output)
    process = started([*arguments[1:], *more], {"RUN": name, "TESTS_RAY": "1"})
    wait_for_lines(process, output, 5)
    first = workers(name)
    assert len(first) == 2
    actor = psutil.Process(first[0].ppid())
    actor.kill()
    _, alive = psutil.wait_procs([first[0]], timeout=30)
    assert not alive  # the worker ends with its actor
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert b"its Ray actor died" in err and b"Traceback" not in err
    there = untimed(tmp_path / "whole.jsonl")
    lines = untimed(output)
    assert list(there) and set(lines) == set(there)
    for id, line in lines.items():
        assert line["response"]["body"]["choices"] == there[id]["response"]["body"]["choices"]
    time.sleep(1)
    assert not workers(name)


def test_without_ray_the_error_says_how_to_get_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for variable in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(variable, "")
    place = notes(tmp_path / "in.jsonl", 2)
    output = tmp_path / "out.jsonl"
    assert run(["batch", place, "-o", str(output), "--ray", "local", *QUICK]) == 2
    assert "pip install 'capt-local[ray]'" in capfd.readouterr().err and not output.exists()
    assert run(["batch", place, "-o", str(output), "--ray-actors", "2"]) == 2
