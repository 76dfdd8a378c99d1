"""Thoughts on the command line: on standard error or nowhere, apart in JSON, out of the chat."""

from __future__ import annotations

import io
import json

import pytest

from capt_local.prompting.messages import Message
from capt_local.report.json import answer_from
from capt_local.report.terminal import Screen
from capt_local.report.views import Look
from tests.cli.conftest import Run, Stdin
from tests.cli.fake_runtime import Script

THOUGHT = "a \x1b]52;c;x\x07 \u00b0"


@pytest.fixture
def thinker(script: Script) -> Script:
    data = THOUGHT.encode()
    script.thoughts = [b"", data[:-1], data[-1:]]
    return script


@pytest.mark.usefixtures("thinker")
def test_thoughts_are_never_on_standard_output(run: Run) -> None:
    hidden = run("generate", "{models}", "-p", "x")
    assert hidden.out == "It is pneumonia.\n" and "\\x1b" not in hidden.err
    for flag in ("show", "dim"):
        shown = run("generate", "{models}", "-p", "x", "--thoughts", flag)
        assert shown.out == hidden.out
        # Not a terminal: no style; what a terminal would obey is spelled out.
        assert "\n" in shown.err and shown.err.count("a \\x1b]52;c;x\\x07 \u00b0\n") == 1
        assert "\x1b" not in shown.err


@pytest.mark.usefixtures("thinker")
def test_json_has_them_apart(run: Run) -> None:
    told = json.loads(run("generate", "{models}", "-p", "x", "--json").out)
    message = told["choices"][0]["message"]
    assert message["content"] == "It is pneumonia."
    assert message["reasoning_content"] == THOUGHT
    assert told["usage"]["completion_tokens"] == 6
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert len(told["choices"][0]["logprobs"]["content"]) == 3
    read = answer_from(told).answer
    assert (read.thoughts.decode(), read.thought_tokens, read.tokens) == (THOUGHT, 3, 6)


def test_without_thoughts_json_is_as_it_was(run: Run, script: Script) -> None:
    told = json.loads(run("generate", "{models}", "-p", "x", "--json").out)
    assert told["choices"][0]["message"].keys() == {"role", "content"}
    assert script.calls[1]["options"].expert_in_thoughts is False


@pytest.mark.usefixtures("thinker")
def test_the_summary_counts_them(run: Run) -> None:
    result = run("generate", "{models}", "-p", "x")
    assert "6 tokens" in result.err and "thoughts 3 tokens" in result.err


def test_who_has_a_say_reaches_the_decoder(run: Run, script: Script) -> None:
    for value, wanted in (("on", True), ("off", False)):
        run("generate", "{models}", "-p", "x", "--expert-in-thoughts", value)
        asked = [call for call in script.calls if "asked" in call]
        assert asked[-1]["options"].expert_in_thoughts is wanted


def test_an_answer_that_ends_in_thoughts_says_so(run: Run, thinker: Script) -> None:
    thinker.pieces = []
    result = run("generate", "{models}", "-p", "x")
    assert result.out.strip() == "" and "still in its thoughts" in result.err


def test_a_conversation_does_not_hold_them(run: Run, thinker: Script) -> None:
    run("chat", "{models}", stdin=Stdin(b"one\ntwo\n"))
    asked = [call["asked"] for call in thinker.calls if "asked" in call]
    assert asked[1] == [
        Message("user", "one"), Message("assistant", "It is pneumonia."), Message("user", "two"),
    ]  # fmt: skip


def test_a_turn_that_is_stopped_in_its_thoughts_is_no_turn(run: Run, thinker: Script) -> None:
    thinker.press_at = -3
    result = run("chat", "{models}", "--thoughts", "show", stdin=Stdin(b"one\n"))
    assert result.code == 130 and result.out == ""
    # What the models had read of it is taken back.
    assert any("forgotten" in call or "kept" in call for call in thinker.calls)


def test_on_a_terminal_they_are_faint_and_end_before_the_answer() -> None:
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err, look_err=Look())
    assert screen.asides_on_terminal
    for byte in "hm \x1b °".encode():
        screen.thought(bytes([byte]), dim=True)
    screen.answer(b"Yes")
    screen.end_answer()
    faint = "".join(f"\x1b[2m{part}\x1b[22m" for part in ["h", "m", " ", "\\x1b", " ", "°"])
    assert (out.getvalue(), err.getvalue()) == ("Yes\n", faint + "\n")
