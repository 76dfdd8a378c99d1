"""Outputs are for their owner alone, and never take the place of a file that is not ours."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from capt_local.errors import NumericalError
from tests.cli.conftest import CANARY, Run
from tests.cli.fake_runtime import Script

pytestmark = pytest.mark.usefixtures("script")
NOTE = "A note that nobody may lose."


def test_what_is_written_is_for_its_owner_alone(run: Run, tmp_path: Path) -> None:
    answer, page = tmp_path / "answer.json", tmp_path / "report.html"
    generate = ("generate", "{models}", "-p", CANARY, "--json", "-o", str(answer))
    explain = ("explain", str(answer))
    for verb in (generate, explain):
        for file in (answer, page):
            file.touch()
            file.chmod(0o644)
        assert run(*verb, "--html", str(page)).code == 0
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert "pneumonia" in page.read_text("utf-8")
        # The note stands beside the answer where it is known.
        assert (CANARY in page.read_text("utf-8")) == (verb is generate)
        assert stat.S_IMODE(answer.stat().st_mode) == (0o600 if verb is generate else 0o644)
    left = {path.name for path in tmp_path.iterdir()}
    models = {"target.gguf", "expert.gguf", "base.gguf"}
    assert left == {"answer.json", "report.html", *models}


@pytest.mark.parametrize("flag", ["-o", "--html"])
def test_an_output_that_cannot_be_written_is_found_before_the_models_load(
    run: Run, script: Script, tmp_path: Path, flag: str
) -> None:
    long = tmp_path / ("x" * 300)
    for place in (tmp_path / "no" / "folder", tmp_path, Path(os.devnull), long):
        result = run("generate", "{models}", "-p", "x", flag, str(place))
        assert result.code == 2
        assert re.search(rf"^error: The \w+ \({flag}\) [^\n]+$", result.err, re.M)
    assert not script.calls


@pytest.mark.parametrize(("ended", "form"), [("interrupt", ["--json"]), ("error", [])])
def test_an_incomplete_answer_replaces_no_file(
    run: Run, script: Script, tmp_path: Path, ended: str, form: list[str]
) -> None:
    answer, page = tmp_path / "answer", tmp_path / "report.html"
    ask = ["-p", "x", *form, "-o", str(answer), "--html", str(page), "--force"]

    def end_early() -> None:
        script.press_at = 0 if ended == "interrupt" else None
        script.fail_at = 1 if ended == "error" else None
        script.error = NumericalError("broken")
        result = run("generate", "{models}", *ask)
        for name in ("The output (-o)", "The report (--html)"):
            assert result.err.count(f"note: {name} exists and stays") == (name in stays)
        assert result.code == (130 if ended == "interrupt" else 3)

    stays: tuple[str, ...] = ()
    end_early()
    assert "It is " in answer.read_text() and "pneumonia" not in answer.read_text()
    assert page.exists()
    script.press_at = script.fail_at = None
    assert run("generate", "{models}", *ask).code == 0
    complete = answer.read_bytes(), page.read_bytes()
    assert b"pneumonia" in complete[0]
    stays = ("The output (-o)", "The report (--html)")
    end_early()
    assert (answer.read_bytes(), page.read_bytes()) == complete
    page.unlink()  # each file by itself
    stays = ("The output (-o)",)
    end_early()
    assert answer.read_bytes() == complete[0] and page.exists()


def test_an_answer_is_not_lost_with_the_disk(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("generate", "{models}", "-p", "x", "-o", str(tmp_path / "answer.txt"))
    assert result.code == 2
    assert result.out == "It is pneumonia.\n"
    assert "No space left" in result.err
    assert not list(tmp_path.glob("*answer*")) + list(tmp_path.glob(".capt-local-*"))


@pytest.mark.parametrize(
    ("option", "link"), [("-o", "none"), ("-o", "symlink"), ("--html", "hardlink")]
)
def test_an_input_is_never_replaced(run: Run, tmp_path: Path, option: str, link: str) -> None:
    note = tmp_path / "note.txt"
    note.write_text(NOTE)
    output = note if link == "none" else tmp_path / "other.txt"
    if link == "symlink":
        output.symlink_to(note)
    elif link == "hardlink":
        output.hardlink_to(note)
    result = run("generate", "{models}", "-f", str(note), option, str(output), "--force")
    assert result.code == 2
    assert note.read_text() == NOTE
    assert output.samefile(note)


def test_schemas_and_models_are_inputs_too(run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    result = run(
        "generate", "{models}", "-p", "x", "--json-schema", str(schema), "-o", str(schema),
        "--force",
    )  # fmt: skip
    assert result.code == 2
    assert schema.read_text() == '{"type": "object"}'
    model = next(tmp_path.rglob("*.gguf"))
    before = model.read_bytes()
    assert run("generate", "{models}", "-p", "x", "-o", str(model), "--force").code == 2
    assert model.read_bytes() == before


def test_a_file_of_others_is_replaced_only_when_forced(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "thesis.txt"
    other.write_text(NOTE)
    refused = run("generate", "{models}", "-p", "x", "-o", str(other))
    assert refused.code == 2 and "--force" in refused.err
    assert other.read_text() == NOTE
    assert run("generate", "{models}", "-p", "x", "-o", str(other), "--force").code == 0
    assert other.read_text() != NOTE


def test_what_we_wrote_and_empty_files_are_replaced(run: Run, tmp_path: Path) -> None:
    answer, page = str(tmp_path / "answer.json"), str(tmp_path / "report.html")
    Path(answer).touch()
    for _ in range(2):
        generate = ("generate", "{models}", "-p", "x", "--json", "-o", answer, "--html", page)
        assert run(*generate).code == 0
    assert run("explain", answer, "--html", page).code == 0
    assert run("explain", answer, "--html", answer).code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("score", "{models}", "--raw", "{input}", "-o"),
        ("batch", "{models}", "--parallel", "1", "{input}", "-o", "{folder}/out.jsonl", "--csv"),
        ("batch", "{models}", "--parallel", "1", "{input}", "--force-new", "-o"),
    ],
    ids=["score", "table", "batch"],
)
def test_no_verb_replaces_a_model_or_what_it_did_not_write(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    places = {"input": tmp_path / "in.jsonl", "folder": tmp_path}
    places["input"].write_text('{"id": "a", "prompt": "b", "continuation": " c"}\n')
    (other := tmp_path / "thesis.txt").write_text(NOTE)
    model = next(tmp_path.rglob("*.gguf"))
    (link := tmp_path / "link").symlink_to(model)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = [part.format(models="{models}", **places) for part in command]
    for place in (model, link, *([other] if command[-2] != "--force-new" else [])):
        result = run(*given, str(place))
        assert result.code == 2 and "traceback" not in result.err, place
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
