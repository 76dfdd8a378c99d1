"""`replay` with the trio that travels with the package: the same, another setting, another text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.cli import allowed
from capt_local.cli.app import run
from capt_local.cli.batch import replay_work
from capt_local.config.limits import Limits
from capt_local.config.read import SiteFile
from capt_local.decode.options import CombineOptions, GenerateOptions
from tests.cli.test_batch import CANARY, QUICK, written

Said = pytest.CaptureFixture[str]
PROMPTS = [
    {"id": "warm", "prompt": f"What is fever? {CANARY}", "temperature": 0.8},
    {"id": "long", "prompt": "fever " * 900},
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    place = written(folder / "in.jsonl", PROMPTS)
    (folder / "rules.txt").write_text("Be short.\n")
    more = ["--system", str(folder / "rules.txt"), "--stop", "END", "--logprobs"]
    assert run(["batch", place, "-o", str(folder / "out.jsonl"), *QUICK, *more]) == 6
    return folder / "out.jsonl"


def replayed(output: Path, capfd: Said, *more: str, id: str = "warm") -> tuple[int, dict[str, Any]]:
    place = str(output.with_name("in.jsonl"))
    code = run(["replay", str(output), "--id", id, "--input", place, "--json", *more])
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    return code, json.loads(out) if out else {"error": err}


def test_a_drawn_answer_is_drawn_again(output: Path, capfd: Said) -> None:
    texts = ["--system", str(output.with_name("rules.txt")), "--stop", "END"]
    code, found = replayed(output, capfd, *texts)
    assert (code, found["identical"], found["settings_that_differ"]) == (0, True, [])
    assert found["output_untouched"] is True


def test_other_log_probabilities_are_another_answer(
    output: Path, tmp_path: Path, capfd: Said
) -> None:
    for name in ("in.jsonl", "rules.txt", "out.jsonl.run.json"):
        (tmp_path / name).write_bytes(output.with_name(name).read_bytes())
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    (line,) = [line for line in lines if line["id"] == "warm"]
    line["response"]["body"]["choices"][0]["logprobs"]["content"][0]["logprob"] -= 1e-6
    (tmp_path / "out.jsonl").write_text(json.dumps(line) + "\n")
    texts = ["--system", str(tmp_path / "rules.txt"), "--stop", "END"]
    code, found = replayed(tmp_path / "out.jsonl", capfd, *texts)
    assert (code, found["identical"], found["same_text"]) == (6, False, True)
    assert found["output_untouched"] is True and found["settings_that_differ"] == []


def test_other_devices_are_named(output: Path, tmp_path: Path, capfd: Said) -> None:
    for name in ("in.jsonl", "rules.txt", "out.jsonl", "out.jsonl.run.json"):
        (tmp_path / name).write_bytes(output.with_name(name).read_bytes())
    manifest = json.loads((tmp_path / "out.jsonl.run.json").read_bytes())
    manifest["provenance"][0]["devices"] = ["CPU: another one"]
    (tmp_path / "out.jsonl.run.json").write_text(json.dumps(manifest))
    texts = ["--system", str(tmp_path / "rules.txt"), "--stop", "END"]
    _, found = replayed(tmp_path / "out.jsonl", capfd, *texts)
    assert found["settings_that_differ"] == ["computed.devices"]


def test_what_was_not_given_again_is_named(output: Path, capfd: Said) -> None:
    code, found = replayed(output, capfd, "-t", "2")
    names = " ".join(found["settings_that_differ"])
    assert "prompt.system_sha256" in names and "parameters.stop" in names
    assert "computing.threads (1, now 2)" in names
    assert (code == 0) == found["identical"]


def test_weights_that_the_site_forbids_now_are_refused(
    output: Path, capfd: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = replay_work.options_then

    def wide(*given: Any) -> GenerateOptions:
        return dataclasses.replace(then(*given), combine=CombineOptions(alphas=(2.0,)))

    site = SiteFile(tmp_path / "site.toml", True, limits=Limits(tmp_path / "site.toml", alpha=1.5))
    monkeypatch.setattr(replay_work, "options_then", wide)
    monkeypatch.setattr(allowed, "read_site", lambda: site)
    code, said = replayed(output, capfd)
    assert code == 2 and "site.toml" in said["error"]


def test_a_failed_record_fails_again(output: Path, capfd: Said) -> None:
    texts = ["--system", str(output.with_name("rules.txt")), "--stop", "END"]
    code, found = replayed(output, capfd, *texts, id="long")
    assert (code, found["identical"]) == (0, True)
    assert found["then"]["code"] == found["now"]["code"] == "context_overflow"


def test_another_record_and_a_changed_output_are_noticed(
    output: Path, tmp_path: Path, capfd: Said
) -> None:
    for name in ("rules.txt", "out.jsonl.run.json"):
        (tmp_path / name).write_bytes(output.with_name(name).read_bytes())
    written(tmp_path / "in.jsonl", [{"id": "warm", "prompt": "What is gout?", "temperature": 0.8}])
    line = json.loads(output.read_bytes().split(b"\n")[0])
    if line["id"] != "warm":
        line = json.loads(output.read_bytes().split(b"\n")[1])
    line["response"]["body"]["choices"][0]["message"]["content"] += " Changed."
    (tmp_path / "out.jsonl").write_text(json.dumps(line) + "\n")
    texts = ["--system", str(tmp_path / "rules.txt"), "--stop", "END"]
    code, found = replayed(tmp_path / "out.jsonl", capfd, *texts)
    assert (code, found["identical"], found["output_untouched"]) == (6, False, False)
    assert found["settings_that_differ"] == ["record"]


@pytest.mark.parametrize(
    ("id", "manifest", "told"),
    [
        ("none", True, "has no record of that id"),
        ("warm", False, "has lost its manifest"),
    ],
)
def test_what_cannot_be_run_again_is_one_line(
    output: Path, tmp_path: Path, capfd: Said, id: str, manifest: bool, told: str
) -> None:
    names = ["in.jsonl", "out.jsonl"] + ["out.jsonl.run.json"] * manifest
    for name in names:
        (tmp_path / name).write_bytes(output.with_name(name).read_bytes())
    code, found = replayed(tmp_path / "out.jsonl", capfd, id=id)
    assert code == 2 and told in found["error"] and found["error"].count("error: ") == 1
    assert run(["replay", str(output)]) == 2


DAMAGED = [
    {"id": "warm"},
    {"id": "warm", "error": {"code": "x"}, "response": None, "provenance": {"output_sha256": None}},
    {"id": "warm", "error": None, "response": {"body": CANARY}, "provenance": {"record": CANARY}},
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_told_before_models_are_loaded(
    output: Path,
    tmp_path: Path,
    capfd: Said,
    monkeypatch: pytest.MonkeyPatch,
    line: dict[str, Any],
) -> None:
    for name in ("in.jsonl", "out.jsonl.run.json"):
        (tmp_path / name).write_bytes(output.with_name(name).read_bytes())
    written(tmp_path / "out.jsonl", [line])
    monkeypatch.setattr(replay_work, "start_worker", None)
    code, found = replayed(tmp_path / "out.jsonl", capfd)
    assert code == 2
    assert "the line of this record is not a result of capt-local batch." in found["error"]


def test_an_output_that_is_not_there_is_told_as_that(
    output: Path, tmp_path: Path, capfd: Said
) -> None:
    (tmp_path / "in.jsonl").write_bytes(output.with_name("in.jsonl").read_bytes())
    for manifest in (False, True):
        if manifest:
            kept = output.with_name("out.jsonl.run.json")
            (tmp_path / "out.jsonl.run.json").write_bytes(kept.read_bytes())
        code, found = replayed(tmp_path / "out.jsonl", capfd)
        assert code == 2 and "(OUTPUT) cannot be read: there is no such file." in found["error"]
    (tmp_path / "folder").mkdir()
    code, found = replayed(tmp_path / "folder", capfd)
    assert code == 2 and "(OUTPUT) cannot be read: it is not a file." in found["error"]
