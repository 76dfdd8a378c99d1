"""The view of an answer in a terminal: marks, the largest shifts, what `changed` means."""

from __future__ import annotations

from dataclasses import replace

from capt_local.decoding.step import FinishReason
from capt_local.report.answers import views
from capt_local.report.drawing import drawn
from capt_local.report.json import Answer
from capt_local.report.views import Look, plain
from tests.report.answers import an_answer, long_answer

PIECES = [
    (b"He has", None, 0.5),
    (b" pneumonia", b" a cold", 3.25),
    (b".", None, -1.0),
    (b"", b" He", 2.0),
]


def text(answer: Answer, alone: Answer | None = None) -> str:
    return "\n".join(line for view in views(answer, alone) for line in plain(view))


def test_marks_and_figures_without_colour() -> None:
    shown = text(an_answer(PIECES))
    assert "  He has [pneumonia]." in shown
    row = next(line for line in shown.splitlines() if '" pneumonia"' in line)
    assert " ".join(row.replace('"', "").split()) == (
        "2 a cold 0.779 pneumonia 0.135 0.368 0.014 0.607 +3.25"
    )
    assert '"(end)"' not in shown and "(end)" in shown
    heading = "step  target alone      p  was said      target  expert   base    all   nats"
    assert heading in shown


def test_changed_is_told_to_be_about_one_token() -> None:
    shown = " ".join(text(an_answer(PIECES)).split())
    assert "one token at a time, given this answer up to there" in shown


def test_on_a_terminal_without_colour_marks_are_bold_and_underlined() -> None:
    pane = views(an_answer(PIECES))[0]
    shown = drawn(pane, Look(width=80, colour=False))
    assert "\x1b[1;4mpneumonia\x1b[0m" in shown
    assert "\x1b[1;4;35mpneumonia" in drawn(pane, Look(width=80, colour=True))


def test_ten_rows_at_most() -> None:
    rows = [line for line in text(long_answer(100)).splitlines() if line.lstrip()[:1].isdigit()]
    assert len([row for row in rows if '" other"' in row]) <= 10


def test_the_targets_own_answer_beside_it() -> None:
    shown = text(an_answer(PIECES), an_answer([(b"He has a cold.", None, 0.0)]))
    assert shown.index("He has a cold.") < shown.index("[pneumonia]")


def test_what_is_not_known_is_not_shown() -> None:
    answer = an_answer(PIECES)
    bare = replace(
        answer, steps=[replace(s, expert_logp=None, base_logp=None) for s in answer.steps]
    )
    assert "  expert  " not in text(bare) and "p target" in text(bare)
    assert "The expert changed no token." in text(an_answer([(b"a", None, 0.1)]))
    alone = replace(answer, prompt_tokens={"target": 10}, weights=())
    assert "nothing to compare" in text(alone)


def test_a_draw_is_told() -> None:
    answer = an_answer(PIECES)
    assert "drawn at random" not in text(answer)
    steps = [*answer.steps[:1], replace(answer.steps[1], likeliest=99), *answer.steps[2:]]
    assert "drawn at random" in text(replace(answer, steps=steps))


def test_warnings_stand_beside_the_answer() -> None:
    assert "Note: the answer was interrupted" in text(an_answer(PIECES, FinishReason.INTERRUPTED))
    assert "the answer is empty" in text(an_answer([(b"", None, 0.0)])).replace("\n", " ")


def test_no_escape_sequence_gets_out() -> None:
    answer = an_answer([(b"a\x1b]0;x\x07", b"\x1b[2J", 2.0)])
    answer = replace(answer, notices=("\x1b[31mred",))
    assert "\x1b" not in text(answer)
