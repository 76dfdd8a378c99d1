"""`explain` and `generate --html`: from a file or a pipe to a view or a page; broken files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.bundles.manifest import Bundle
from capt_local.chat import Conversation, Turn, transcript
from capt_local.decoding.options import GenerateOptions
from capt_local.report.json import answer_from
from tests.cli.conftest import CANARY, Run, Stdin
from tests.cli.fake_runtime import Script


@pytest.fixture
def kept(run: Run, script: Script, tmp_path: Path) -> Path:
    """What `generate --json` wrote."""
    file = tmp_path / "answer.json"
    flags = ("--json", "--top-logprobs", "3", "--with-target", "-o", str(file))
    assert run("generate", "{models}", "-p", "x", *flags).code == 0
    return file


def test_an_answer_is_explained_from_a_file_or_a_pipe(run: Run, kept: Path) -> None:
    piped = Stdin(kept.read_bytes())
    for arguments, stdin in (([str(kept)], None), ([], piped), (["-"], Stdin(kept.read_bytes()))):
        result = run("explain", *arguments, stdin=stdin)
        assert result.code == 0
        assert "It is [pneumonia]." in result.out and '"a cold"' in result.out
        assert "The target alone:" in result.out
        assert "for one word at a time" in " ".join(result.out.split())


def test_turns_of_a_transcript(run: Run, kept: Path) -> None:
    answer = answer_from(json.loads(kept.read_text()))
    turn = Turn(CANARY, answer, GenerateOptions())
    talk = Conversation("Be brief.").plus(turn).plus(turn)
    data = transcript(talk, Bundle("demo", {}), {}).encode()
    result = run("explain", stdin=Stdin(data))
    assert result.code == 0 and "holds 2 answers; this is the last" in result.err
    result = run("explain", "--turn", "2", stdin=Stdin(data))
    assert result.err == "" and "[pneumonia]" in result.out and CANARY not in result.out
    result = run("explain", "--turn", "3", stdin=Stdin(data))
    assert result.code == 2 and "the file holds 2 answers" in result.err
    for taken in (b"undo", b"clear"):  # of transcripts that earlier versions wrote
        assert run("explain", stdin=Stdin(data + b'\n{"type": "' + taken + b'"}\n')).code == 2


def test_a_line_of_a_batch_without_log_probabilities_names_the_flag(run: Run, kept: Path) -> None:
    body = json.loads(kept.read_text())
    with_them = json.dumps({"id": "a", "response": {"status_code": 200, "body": body}})
    body["choices"][0]["logprobs"] = None
    without = json.dumps({"id": "b", "response": {"status_code": 200, "body": body}})
    result = run("explain", stdin=Stdin(without.encode()))
    assert (result.code, result.out) == (2, "") and "--logprobs" in result.err
    both = f"{with_them}\n{without}\n".encode()
    assert run("explain", "--turn", "1", stdin=Stdin(both)).code == 0


BROKEN = [
    b"", b"\xff" + CANARY.encode(), f"{CANARY}".encode(), b"[" * 100_000, b"[]",
    f'{{"{CANARY}": "{CANARY}"}}'.encode(), b'{"choices": [1]}', b'{"answer": {"choices": 3}}',
    f'{{"type": "turn"}}\n{CANARY}'.encode(), b'{"type": "system"}\n{}',
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_one_line_without_its_text(data: bytes, run: Run, tmp_path: Path) -> None:
    file, report = tmp_path / f"{CANARY}.json", tmp_path / "report.html"
    file.write_bytes(data)
    for arguments, stdin in (([str(file)], None), ([], Stdin(data))):
        result = run("explain", *arguments, "--html", str(report), stdin=stdin)
        assert (result.code, result.out) == (2, "")
        assert result.err.count("\n") == 1 and result.err.startswith("error: ")
        assert CANARY not in result.err and "Traceback" not in result.err
    assert not report.exists()


def test_files_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    result = run("explain", str(tmp_path / f"{CANARY}.json"))
    assert result.code == 2 and CANARY not in result.err
    assert run("explain", str(tmp_path)).code == 2
    assert run("explain", stdin=Stdin(terminal=True)).code == 2
