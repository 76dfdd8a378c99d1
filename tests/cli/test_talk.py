"""A conversation with a runtime that does what the test says: nothing said is lost."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.chat import Call
from capt_local.cli import chat as chat_module
from capt_local.cli.chat import ChatSession
from capt_local.cli.exits import Signals
from capt_local.cli.options import ModelFlags
from capt_local.cli.session import find_bundle, open_session
from capt_local.config import Feature, SiteFile, SiteLimits
from capt_local.decoding.options import FinishReason, GenerateOptions, SampleOptions
from capt_local.errors import ContextOverflow, NumericalError, UsageError
from capt_local.report.terminal import Screen
from tests.cli.fake_runtime import Script

Made = tuple[ChatSession, io.StringIO]


@pytest.fixture
def made(script: Script, tmp_path: Path) -> Iterator[Made]:
    places = {role: tmp_path / f"{role}.gguf" for role in ("target", "expert", "base")}
    for path in places.values():
        path.write_bytes(b"GGUF")
    flags = ModelFlags(target=places["target"], expert=[places["expert"]], base=[places["base"]])
    err = io.StringIO()
    with Signals() as signals:
        session = open_session(find_bundle(flags), flags, Screen(io.StringIO(), err), signals)
        yield ChatSession(session, signals, GenerateOptions(top=3)), err


def test_an_interrupted_answer_is_a_turn(made: Made, script: Script) -> None:
    talk, err = made
    script.press_at = 0
    talk.ask("one")
    script.press_at = None
    talk._signals.again()  # as the terminal does before it waits for a line
    talk.ask("two")
    assert [turn.answer.finish for turn in talk.conversation.turns] == ["interrupted", "stop"]
    assert talk.conversation.turns[0].reply == "It is "
    assert "interrupted" in err.getvalue()
    # A notice is told once, however often it comes.
    assert err.getvalue().count("a notice of the generation") == 1


def test_an_answer_that_an_error_ends_is_a_turn(made: Made, script: Script) -> None:
    talk, _ = made
    script.fail_at, script.error = 2, NumericalError("no numbers")
    with pytest.raises(NumericalError):
        talk.ask("one")
    (turn,) = talk.conversation.turns
    assert (turn.reply, turn.answer.finish) == ("It is pneumonia", FinishReason.ERROR)


@pytest.mark.parametrize(
    "error", [ContextOverflow({"target": 9}, 4), UsageError("x"), RuntimeError("y")]
)
def test_a_question_that_fails_at_once_changes_nothing(
    made: Made, script: Script, error: Exception
) -> None:
    talk, _ = made
    talk.notes = ("a note",)
    script.fail_at, script.error = 0, error
    with pytest.raises(type(error)):
        talk.ask("one")
    assert talk.conversation.turns == () and talk.notes == ("a note",)
    assert {"forgotten": True} in script.calls
    script.fail_at = None
    talk.ask("one")
    assert talk.conversation.turns[0].question == "a note\n\none" and talk.notes == ()


@pytest.mark.parametrize("setting", ["", "alpha=0"])
def test_another_answer_that_fails_leaves_the_first(
    made: Made, script: Script, setting: str
) -> None:
    talk, _ = made
    talk.ask("one")
    before = talk.conversation
    talk.options = replace(talk.options, sample=SampleOptions(temperature=0.7))
    script.press_at = 1
    talk.run(Call("regen", setting))
    talk._signals.again()
    script.fail_at, script.error = 1, NumericalError("no numbers")
    with pytest.raises(NumericalError):
        talk.run(Call("regen", setting))
    assert talk.conversation is before


def test_an_answer_with_other_settings_stands_beside_the_one_that_stays(
    made: Made, script: Script
) -> None:
    talk, err = made
    talk.ask("one")
    before = talk.conversation
    script.pieces = [(b"A cold.", None)]
    talk.run(Call("regen", "alpha=0"))
    assert talk.conversation is before
    shown = err.getvalue()
    assert "alpha evidence:\n  It is [pneumonia]." in shown and "alpha 0:\n  A cold." in shown
    assert {"kept": before.asking(".")} in script.calls  # the models forget the other answer
    with pytest.raises(UsageError, match="/regen alpha=0"):
        talk.run(Call("regen"))  # at temperature 0 the same
    talk.run(Call("set", "alpha 0"))
    talk.run(Call("regen"))
    assert [turn.reply for turn in talk.conversation.turns] == ["A cold."]


def test_what_the_site_forbids_is_forbidden_in_a_conversation_too(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = SiteLimits(tmp_path / "site.toml", frozenset({Feature.TRANSCRIPTS}), 1.5)
    forbidding = SiteFile(limits.file, True, limits=limits)
    monkeypatch.setattr(chat_module, "read_site", lambda: forbidding)
    talk, _ = made
    talk.ask("one")
    before = talk.options
    for call in (Call("save", str(tmp_path / "x")), Call("set", "alpha=2"),
                 Call("regen", "alpha=2")):  # fmt: skip
        with pytest.raises(UsageError, match=r"forbidden here: .*site\.toml"):
            talk.run(call)
    assert talk.options is before
    assert not (tmp_path / "x").exists()
    talk.run(Call("set", "alpha=1.5"))


def test_another_conversation_does_not_take_the_place_of_a_saved_one(
    made: Made, tmp_path: Path
) -> None:
    talk, _ = made
    run, file = talk.run, tmp_path / "one.jsonl"
    talk.ask("one")
    run(Call("save", str(file)))
    run(Call("save", str(file)))
    run(Call("clear"))
    talk.ask("two")
    with pytest.raises(UsageError, match="such a file already"):
        run(Call("save", str(file)))
    with pytest.raises(UsageError, match="folder"):
        run(Call("save", str(tmp_path)))
    assert '"one"' in file.read_text()
