"""Views as characters: golden at a fixed width, and no text is ever an instruction."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from capt_local.report.answers import LEGEND, both, shift_table
from capt_local.report.drawing import drawn, progress_line, progress_width
from capt_local.report.views import (
    Beside,
    Look,
    Pane,
    Prose,
    Span,
    Table,
    View,
    cells,
    plain,
)
from tests.report.answers import an_answer

STYLE = re.compile(r"\x1b\[[0-9;]*m")
CANARY = "\x1b]52;\x07[bold red]x[/] :smile: [link=//x] \u202e\x9b2J"
SPELLED = r"\x1b]52;\x07[bold red]x[/] :smile: [link=//x] \u202e\x9b2J"


ALONE = replace(an_answer([(b"It is a cold.", None, 0.0)]), prompt_tokens={"target": 9}, weights=())
TOGETHER = an_answer([(b"It is", None, 0.0), (b" pneumonia", b" a", 2.0), (b".", None, 0.0)])
FIGURES = shift_table(TOGETHER.steps)


def shown(view: View, width: int, **look: object) -> list[str]:
    """What is drawn, without styles and trailing blanks."""
    text = STYLE.sub("", drawn(view, Look(width, **look)))  # type: ignore[arg-type]
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("width", [100, 60, 20, 1])
def test_without_colour_there_is_bold_and_underline_alone(width: int) -> None:
    for view in (both(ALONE, TOGETHER), FIGURES, LEGEND):
        assert set(STYLE.findall(drawn(view, Look(width)))) <= {"\x1b[1m", "\x1b[1;4m", "\x1b[0m"}


@pytest.mark.parametrize("width", [160, 80, 40])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    for view in (both(ALONE, TOGETHER), LEGEND, Table("t", (("name", "value " * 40),))):
        assert all(cells(line) <= width for line in shown(view, width))


VIEWS: list[View] = [
    Prose.of(CANARY),
    Pane("t", (Span(CANARY),)),
    Pane("t", (Span(CANARY, marked=True),)),
    Pane(CANARY, ()),
    Pane("t", (), CANARY),
    Table(CANARY, (("a",),)),
    Table("t", ((CANARY, "b"),)),
    Table("t", (("a", "b"),), (CANARY, "y"), right=(0,)),
    Beside(Pane(CANARY, ()), Pane("t", (Span(CANARY),))),
]


@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
@pytest.mark.parametrize("colour", [False, True])
def test_no_text_is_an_instruction(view: View, colour: bool) -> None:
    on_terminal = STYLE.sub("", drawn(view, Look(400, colour=colour)))
    for text in (on_terminal, "\n".join(plain(view))):
        assert SPELLED in re.sub(r"[│\n]", "", text)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    for view in (both(ALONE, TOGETHER), FIGURES):
        assert drawn(view, Look(110, encoding="ascii")).isascii()
    assert progress_line("loading", 0.5, Look(40, encoding="ascii")).isascii()


@pytest.mark.parametrize("width", [1, 5, 20, 80])
def test_a_progress_line_is_one_line_that_fits(width: int) -> None:
    look = Look(width)
    line = STYLE.sub("", progress_line("loading " + CANARY, 0.3, look))
    assert "\n" not in line
    assert cells(line) <= progress_width(look) <= max(width - 1, 1)
