"""Outputs never take the place of a file that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("script")
NOTE = "A note that nobody may lose."


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
    answer, page = tmp_path / "answer.json", tmp_path / "report.html"
    answer.touch()
    flags = ["-p", "x", "--json", "-o", str(answer), "--html", str(page)]
    for _ in range(2):
        assert run("generate", "{models}", *flags).code == 0
    assert run("explain", str(answer), "--html", str(page)).code == 0
    assert run("explain", str(answer), "--html", str(answer)).code == 2


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
