"""The answer alone on standard output, marks without colour, a quiet standard error."""

from __future__ import annotations

import io

from capt_local.report.screen import Screen, Span, can_style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(**options: bool) -> tuple[Screen, io.StringIO, io.StringIO]:
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
    screen, out, err = make(style_out=True)
    for piece in (b"\x1b", b"]52;c;aGk=", b"\x07"):
        screen.answer(piece)
    screen.note("\x1b[2J")
    screen.show((Span("\x1b[31mred\x1b[0m", marked=False),))
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "\\x1b]52" in out.getvalue()


def test_marks_are_bold_and_underlined_where_that_works() -> None:
    screen, out, _ = make(style_out=True)
    screen.show((Span("the "), Span("lungs", marked=True)))
    assert out.getvalue() == "the \x1b[1m\x1b[4mlungs\x1b[0m\n"


def test_marks_are_brackets_elsewhere_and_do_not_cross_lines() -> None:
    screen, out, _ = make()
    screen.show((Span("a"), Span("b\nc", marked=True)))
    assert out.getvalue() == "a[b]\n[c]\n"


def test_marked_text_cannot_close_its_own_style() -> None:
    screen, out, _ = make(style_out=True)
    screen.show((Span("\x1b[0mx", marked=True),))
    assert out.getvalue() == "\x1b[1m\x1b[4m\\x1b[0mx\x1b[0m\n"


def test_styles_only_on_a_terminal_that_is_not_dumb_and_never_colour() -> None:
    assert can_style(Terminal(), {"TERM": "xterm"})
    assert can_style(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})  # no colour is used at all
    assert not can_style(Terminal(), {"TERM": "dumb"})
    assert not can_style(io.StringIO(), {"TERM": "xterm"})


def test_no_progress_line_where_it_could_not_be_redrawn() -> None:
    screen, _, err = make()
    screen.progress("loading target", 0.5)
    assert err.getvalue() == ""


def test_the_progress_line_is_wiped_before_anything_else_is_said() -> None:
    screen, out, err = make(live_err=True)
    screen.progress("loading target", 0.5)
    screen.progress("loading target", 0.5)
    screen.answer(b"x")
    shown = "\rloading target 50 %"
    assert err.getvalue() == shown + "\r" + " " * (len(shown) - 1) + "\r"
    assert out.getvalue() == "x"


def test_an_error_is_one_line() -> None:
    screen, _, err = make()
    screen.error("first\nsecond")
    assert err.getvalue() == "error: first second\n"
