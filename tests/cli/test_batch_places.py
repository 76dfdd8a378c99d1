"""Files of a batch run that would lie in each other's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("flag", ["--summary", "--audit"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.run.json", "in.jsonl", "system.txt"])
def test_what_is_written_beside_the_output_has_a_place_of_its_own(
    run: Run, tmp_path: Path, flag: str, name: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "prompt": "What is it?"}\n')
    (tmp_path / "system.txt").write_text("Be brief.\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = [str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    given += ["--system", str(tmp_path / "system.txt"), flag, str(tmp_path / name)]
    result = run("batch", *given)
    assert result.code == 2
    assert flag in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
