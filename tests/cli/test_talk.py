"""A conversation with a runtime that does what the test says: nothing said is lost."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.chat.commands import Call
from capt_local.cli import talk as talk_module
from capt_local.cli.options import ModelFlags
from capt_local.cli.session import find_bundle, open_session
from capt_local.cli.signals import Signals
from capt_local.cli.talk import Talk
from capt_local.config import Feature, SiteFile, SiteLimits
from capt_local.decoding.options import GenerateOptions, SampleOptions
from capt_local.decoding.step import FinishReason
from capt_local.errors import ContextOverflow, NumericalError, UsageError
from capt_local.line_file import LineFile
from capt_local.report.terminal import Screen
from tests.cli.conftest import Run, Stdin
from tests.cli.fake_runtime import Script

Made = tuple[Talk, io.StringIO, Path]


@pytest.fixture
def made(script: Script, tmp_path: Path) -> Iterator[Made]:
    places = {role: tmp_path / f"{role}.gguf" for role in ("target", "expert", "base")}
    for path in places.values():
        path.write_bytes(b"GGUF")
    flags = ModelFlags(target=places["target"], expert=[places["expert"]], base=[places["base"]])
    err, log = io.StringIO(), tmp_path / "t.jsonl"
    with Signals() as signals:
        session = open_session(find_bundle(flags), flags, Screen(io.StringIO(), err), signals)
        talk = Talk(session, signals, GenerateOptions(top=3), LineFile(log, "The transcript"))
        yield talk, err, log


def events(log: Path) -> list[str]:
    return [json.loads(line)["type"] for line in log.read_text().splitlines()[1:]]


def test_an_interrupted_answer_is_a_turn(made: Made, script: Script) -> None:
    talk, err, log = made
    script.press_at = 0
    talk.ask("one")
    script.press_at = None
    talk._signals.again()  # as the terminal does before it waits for a line
    talk.ask("two")
    assert [turn.answer.finish for turn in talk.conversation.turns] == ["interrupted", "stop"]
    assert talk.conversation.turns[0].reply == "It is "
    assert events(log) == ["turn", "turn"] and "interrupted" in err.getvalue()
    # A notice is told once, however often it comes.
    assert err.getvalue().count("a notice of the generation") == 1


def test_an_answer_that_an_error_ends_is_a_turn(made: Made, script: Script) -> None:
    talk, _, log = made
    script.fail_at, script.error = 2, NumericalError("no numbers")
    with pytest.raises(NumericalError):
        talk.ask("one")
    (turn,) = talk.conversation.turns
    assert (turn.reply, turn.answer.finish) == ("It is pneumonia", FinishReason.ERROR)
    assert events(log) == ["turn"]


@pytest.mark.parametrize(
    "error", [ContextOverflow({"target": 9}, 4), UsageError("x"), RuntimeError("y")]
)
def test_a_question_that_fails_at_once_changes_nothing(
    made: Made, script: Script, error: Exception
) -> None:
    talk, _, log = made
    talk.notes = ("a note",)
    script.fail_at, script.error = 0, error
    with pytest.raises(type(error)):
        talk.ask("one")
    assert talk.conversation.turns == () and talk.notes == ("a note",) and events(log) == []
    assert {"forgotten": True} in script.calls
    script.fail_at = None
    talk.ask("one")
    assert talk.conversation.turns[0].question == "a note\n\none" and talk.notes == ()


@pytest.mark.parametrize("setting", ["", "alpha=0"])
def test_another_answer_that_fails_leaves_the_first(
    made: Made, script: Script, setting: str
) -> None:
    talk, _, log = made
    talk.ask("one")
    before = talk.conversation
    talk.options = replace(talk.options, sample=SampleOptions(temperature=0.7))
    script.press_at = 1
    talk.run(Call("regen", setting))
    talk._signals.again()
    script.fail_at, script.error = 1, NumericalError("no numbers")
    with pytest.raises(NumericalError):
        talk.run(Call("regen", setting))
    assert talk.conversation is before and events(log) == ["turn"]


def test_an_answer_with_other_settings_stands_beside_the_one_that_stays(
    made: Made, script: Script
) -> None:
    talk, err, log = made
    talk.ask("one")
    before = talk.conversation
    script.pieces = [(b"A cold.", None)]
    talk.run(Call("regen", "alpha=0"))
    assert talk.conversation is before and events(log) == ["turn"]
    shown = err.getvalue()
    assert "alpha evidence:\n  It is [pneumonia]." in shown and "alpha 0:\n  A cold." in shown
    assert {"kept": before.asking(".")} in script.calls  # the models forget the other answer
    with pytest.raises(UsageError, match="/regen alpha=0"):
        talk.run(Call("regen"))  # at temperature 0 the same
    talk.run(Call("set", "alpha 0"))
    talk.run(Call("regen"))
    assert talk.conversation.last().reply == "A cold." and events(log) == ["turn", "undo", "turn"]
    assert err.getvalue().count("alpha 0:") == 2


def test_a_transcript_on_a_full_disk_is_an_error_each_time_and_the_session_goes_on(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, err, log = made
    talk.ask("one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        talk.ask("two")
    talk.ask("three")
    assert err.getvalue().count("its disk is full. /save writes") == 2
    assert events(log) == ["turn"] and len(talk.conversation.turns) == 3
    with pytest.raises(UsageError, match="disk is full"):
        talk.close()


def test_what_the_site_forbids_is_forbidden_in_a_conversation_too(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = SiteLimits(tmp_path / "site.toml", frozenset({Feature.TRANSCRIPTS}), 1.5)
    forbidding = SiteFile(limits.file, True, limits=limits)
    monkeypatch.setattr(talk_module, "read_site", lambda: forbidding)
    talk, _, log = made
    talk.ask("one")
    before = talk.options
    for call in (
        Call("save", str(tmp_path / "x")),
        Call("set", "alpha=2"),
        Call("regen", "alpha=2"),
    ):
        with pytest.raises(UsageError, match=r"forbidden here: .*site\.toml"):
            talk.run(call)
    assert talk.options is before and events(log) == ["turn"]
    assert not (tmp_path / "x").exists()
    talk.run(Call("set", "alpha=1.5"))


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", 0, ""),
        (b"caf\xe9 zyzzyva\n", 2, "Line 1 of standard input is not valid UTF-8: byte 3"),
        (b'"""\nzyzzyva', 2, 'the closing """ is missing'),
    ],
)
def test_what_a_pipe_cannot_have(
    run: Run, script: Script, data: bytes, code: int, says: str
) -> None:
    result = run("chat", "{models}", stdin=Stdin(data))
    assert (result.code, result.out) == (code, "")
    assert says in result.err and "zyzzyva" not in result.err


def test_another_conversation_does_not_take_the_place_of_a_saved_one(
    made: Made, tmp_path: Path
) -> None:
    talk, _, log = made
    run, file = talk.run, tmp_path / "one.jsonl"
    talk.ask("one")
    run(Call("save", str(file)))
    run(Call("save", str(file)))
    run(Call("clear"))
    talk.ask("two")
    for path in (file, log):
        with pytest.raises(UsageError, match="such a file already"):
            run(Call("save", str(path)))
    with pytest.raises(UsageError, match="folder"):
        run(Call("save", str(tmp_path)))
    assert '"one"' in file.read_text()


def test_a_file_that_is_there_is_not_touched(run: Run, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (path, tmp_path / "link", tmp_path / "no" / "t", tmp_path / ("x" * 300)):
        result = run("chat", "{models}", "--transcript", str(place), stdin=Stdin(b"one\n"))
        assert (result.code, result.out) == (2, "") and "The --transcript file" in result.err
    assert path.read_text() == "mine" and not (tmp_path / "nowhere").exists()
    script.fail_at, script.error = -1, NumericalError("broken")
    assert run("chat", "{models}", "--transcript", str(tmp_path / "t")).code == 3
    assert not (tmp_path / "t").exists()  # an empty one would be in the way the next time
