"""The answer alone on standard output, marks without colour, a quiet standard error."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capt_local.report import terminal as module
from capt_local.report.terminal import Screen, Wrap, look_of
from capt_local.report.views import Look, Pane, Prose, Span, cells


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def make(**options: Look | None) -> tuple[Screen, io.StringIO, io.StringIO]:
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


def test_an_answer_that_ends_with_a_newline_gets_no_second_one() -> None:
    screen, out, _ = make()
    screen.answer(b"yes\n")
    screen.end_answer()
    assert out.getvalue() == "yes\n"


def test_an_empty_answer_prints_nothing() -> None:
    screen, out, _ = make()
    screen.end_answer()
    assert out.getvalue() == ""


def test_escape_sequences_reach_neither_stream() -> None:
    screen, out, err = make(look_out=Look())
    for piece in (b"\x1b", b"]52;c;aGk=", b"\x07"):
        screen.answer(piece)
    screen.end_answer()
    screen.note("\x1b[2J")
    screen.show(Prose((Span("\x1b[31mred\x1b[0m"),)))
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "\\x1b]52" in out.getvalue()
    assert "\\x1b[31mred" in out.getvalue()


def test_views_are_drawn_on_a_terminal_and_plain_lines_elsewhere() -> None:
    view = Pane("Title", (Span("the "), Span("lungs", marked=True)))
    drawn, out, _ = make(look_out=Look(30))
    drawn.show(view)
    assert "the \x1b[1;4mlungs\x1b[0m" in out.getvalue()
    plain, out, _ = make()
    plain.show(view)
    assert out.getvalue() == "Title:\n  the [lungs]\n\n"


def test_what_a_stream_can_show() -> None:
    assert look_of(Terminal(), {"TERM": "xterm", "COLUMNS": "120"}) == Look(120, True, "utf-8")
    no_colour = look_of(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert no_colour == Look(80, False, "utf-8")
    assert look_of(Terminal(), {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "x"}) == Look(80, True)
    assert look_of(Terminal(), {"TERM": "dumb"}) is None
    assert look_of(io.StringIO(), {"TERM": "xterm"}) is None


def test_a_plain_answer_and_notes_need_no_rich() -> None:
    code = (
        "import sys\n"
        "from capt_local.report.terminal import Screen\n"
        "from capt_local.report.views import Prose\n"
        "screen = Screen.standard()\n"
        "screen.answer(b'x')\n"
        "screen.note('x')\n"
        "screen.progress('loading', 0.5)\n"
        "screen.show(Prose.of('x'))\n"
        "print('rich' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "x\nFalse\n"


def test_no_progress_line_where_it_could_not_be_redrawn() -> None:
    screen, _, err = make()
    screen.progress("loading target", 0.5)
    assert err.getvalue() == ""


def test_the_progress_line_is_wiped_before_anything_else_is_said() -> None:
    screen, out, err = make(look_err=Look(21))
    screen.progress("loading", 0.5)
    screen.answer(b"x")
    first, second = err.getvalue().split("\r")[1:3]
    assert re.sub("\x1b\\[[0-9;]*m", "", first) == "loading ━━━     50 %"
    assert second == " " * 20
    assert err.getvalue().endswith("\r")
    assert out.getvalue() == "x"


def test_the_progress_line_is_drawn_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.01, 1.02, 1.2])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    screen, _, err = make(look_err=Look(40))
    for label, part in [("one", 0.1), ("one", 0.2), ("two", 0.3), ("two", 0.4)]:
        screen.progress(label, part)
    shown = re.findall(r"(\d+) %", err.getvalue())
    assert shown == ["10", "30", "40"]


def test_no_colour_in_the_progress_line_unless_wanted() -> None:
    for colour in (False, True):
        screen, _, err = make(look_err=Look(40, colour=colour))
        screen.progress("loading", 0.5)
        assert ("\x1b[3" in err.getvalue()) == colour
        assert ("\x1b[9" in err.getvalue()) == colour


def test_an_error_is_one_line() -> None:
    screen, _, err = make()
    screen.error("first\nsecond")
    assert err.getvalue() == "error: first second\n"


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
    for look, wanted in ((Look(12), "one two\nthree four\n"), (None, "one two three four\n")):
        screen, out, _ = make(look_out=look)
        for piece in (b"one t", b"wo thr", b"ee four"):
            screen.answer(piece)
        screen.end_answer()
        assert out.getvalue() == wanted
