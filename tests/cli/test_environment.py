"""A flag wins over the environment, also where the two are different options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from capt_local.bundles.manifest import Bundle, Defaults
from capt_local.cli import bench
from capt_local.evaluate.bench import BenchPrompt, BenchResult, Timing
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

FOUND = BenchResult({"target": [Timing(1, 1.0, (1, 2), 1.0)]}, [BenchPrompt("x")])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that measures nothing."""
    monkeypatch.setattr(bench, "_invented", lambda *_: [])
    monkeypatch.setattr(bench, "measure", lambda *_: FOUND)
    monkeypatch.setattr(bench, "_about", lambda *_: {"threads": 1})


def test_model_files_win_over_a_bundle_of_the_environment(
    run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_BUNDLE", "demo")
    assert run("generate", "{models}", "-p", "x").code == 0
    assert run("generate", "-m", "demo", "{models}", "-p", "x").code == 2
    assert script.calls[0]["bundle"].id == "files"


def test_a_bundle_wins_over_model_files_of_the_environment(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("target", "expert", "base"):
        monkeypatch.setenv(f"CAPT_LOCAL_{role.upper()}", str(tmp_path / f"{role}.gguf"))
    assert run("generate", "-p", "x").code == 0
    assert run("generate", "-m", "no-such-bundle", "-p", "x").code == 3


def test_both_from_the_environment_are_refused(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_BUNDLE", "demo")
    monkeypatch.setenv("CAPT_LOCAL_TARGET", str(tmp_path / "target.gguf"))
    assert run("generate", "-p", "x").code == 2


def test_a_method_of_the_environment_does_not_stop_bench_and_demo(
    run: Run, script: Script, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_METHOD", "capt")
    assert run("demo", "{models}").code == 0
    assert run("bench", "{models}").code == 0
    assert run("bench", "{models}", "--method", "capt").code == 2


def test_raw_and_system_yield_to_each_other(
    run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_SYSTEM", "Be short.")
    assert run("generate", "{models}", "-p", "x", "--raw").code == 0
    assert script.calls[1]["asked"] == "x"
    assert run("demo", "{models}").code == 0


def test_candidates_of_the_environment_are_for_json_alone(
    run: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPT_LOCAL_TOP_LOGPROBS", "3")
    assert run("generate", "{models}", "-p", "x").code == 0
    assert run("generate", "{models}", "-p", "x", "--json").code == 0
    assert [call["options"].top for call in script.calls if "asked" in call] == [0, 3]


@pytest.mark.parametrize("extra", [["--raw"], ["--system", "Be short."]])
def test_the_demo_takes_raw_and_system_with_a_text_alone(
    extra: list[str], run: Run, script: Script
) -> None:
    assert run("demo", "{models}", *extra).code == 2
    assert not script.calls
    assert run("demo", "{models}", *extra, "-p", "x").code == 0


@pytest.mark.parametrize("method", ["target", "expert"])
def test_bench_loads_what_its_modes_need(
    method: str, run: Run, script: Script, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench.find_bundle

    def with_default(flags: object) -> Bundle:
        return dataclasses.replace(found(flags), defaults=Defaults(method=method))  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "find_bundle", with_default)
    assert run("bench", "{models}").code == 0
    assert script.calls[0]["roles"] is None
