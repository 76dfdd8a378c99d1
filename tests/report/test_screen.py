"""The answer alone on standard output, marks without colour, a quiet standard error."""

from __future__ import annotations

import io
import os
import pty
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.layout.controls import BufferControl
from prompt_toolkit.output import DummyOutput

from capt_local.report.input_line import InputLine
from capt_local.report.terminal import Screen, Wrap, terminal_info, terminal_restorer
from capt_local.report.views import Prose, Span, TerminalInfo, cells


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def make(**options: TerminalInfo | None) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Screen(out, err, **options), out, err


def test_only_the_answer_is_on_standard_output() -> None:
    screen, out, err = make()
    screen.note("loading")
    screen.notes(["a warning"])
    for piece in (b"Take ", "5 µ".encode()[:-1], "5 µ".encode()[-1:], b"g"):
        screen.answer(piece)
    screen.end_answer()
    screen.error("it broke")
    assert out.getvalue() == "Take 5 µg\n"
    assert err.getvalue() == "loading\nnote: a warning\nerror: it broke\n"


def test_escape_sequences_reach_neither_stream() -> None:
    screen, out, err = make(out_info=TerminalInfo())
    for piece in (b"\x1b", b"]52;c;aGk=", b"\x07"):
        screen.answer(piece)
    screen.end_answer()
    screen.note("\x1b[2J")
    screen.show(Prose((Span("\x1b[31mred\x1b[0m"),)))
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "\\x1b]52" in out.getvalue()
    assert "\\x1b[31mred" in out.getvalue()


def test_what_a_stream_can_show() -> None:
    assert terminal_info(Terminal(), {"TERM": "xterm", "COLUMNS": "120"}) == TerminalInfo(
        120, True, "utf-8"
    )
    no_colour = terminal_info(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert no_colour == TerminalInfo(80, False, "utf-8")
    assert terminal_info(
        Terminal(), {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "x"}
    ) == TerminalInfo(80, True)
    assert terminal_info(Terminal(), {"TERM": "dumb"}) is None
    assert terminal_info(io.StringIO(), {"TERM": "xterm"}) is None


@given(st.lists(st.text(alphabet="ab, \n\t体é", max_size=12), max_size=20), st.integers(2, 30))
def test_words_wrap_at_word_ends_and_nothing_is_lost(pieces: list[str], width: int) -> None:
    wrap, text = Wrap(width), "".join(pieces)
    shown = "".join(wrap.feed(piece) for piece in pieces) + wrap.feed("\n")
    assert shown == Wrap(width).feed(text + "\n")  # wherever the stream is cut
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.replace("体", " 体 ").split() == text.replace("体", " 体 ").split() or any(
        cells(word) >= width for word in text.split()
    )
    for line in shown.split("\n"):
        assert "\t" in line or cells(line.rstrip()) <= width or " " not in line.strip()


def test_an_answer_on_a_terminal_wraps_and_in_a_pipe_does_not() -> None:
    for look, wanted in (
        (TerminalInfo(12), "one two\nthree four\n"),
        (None, "one two three four\n"),
    ):
        screen, out, _ = make(out_info=look)
        for piece in (b"one t", b"wo thr", b"ee four"):
            screen.answer(piece)
        screen.end_answer()
        assert out.getvalue() == wanted


def test_what_was_searched_for_is_forgotten_too() -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        line = InputLine(lambda _: ())
        buffer = line._session.search_buffer
        found = line._session.app.layout.find_all_controls()
        controls = [each for each in found if isinstance(each, BufferControl)]

        def searched() -> str:
            states = [each.search_state.text for each in controls]
            return "".join([buffer.text, *buffer.history.get_strings(), *states])

        buffer.text = "zyzzyva"
        buffer.append_to_history()
        for control in controls:
            control.search_state.text = "zyzzyva"
        assert "zyzzyva" in searched()
        line.forget()
        assert searched() == ""


def test_a_terminal_gets_its_echo_back(monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = pty.openpty()
    with os.fdopen(terminal, "r+b", 0) as stream, os.fdopen(master, "rb", 0):
        monkeypatch.setattr(sys, "stdin", stream)
        restore = terminal_restorer()
        before = termios.tcgetattr(stream)
        quiet = termios.tcgetattr(stream)
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(stream, termios.TCSANOW, quiet)
        restore()
        assert termios.tcgetattr(stream) == before and before[3] & termios.ECHO
