"""What is typed is shown spelled out, and the cursor stands where it should."""

from __future__ import annotations

import pytest

pytest.importorskip("prompt_toolkit")

from prompt_toolkit.application import create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples, fragment_list_to_text
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.layout.controls import BufferControl
from prompt_toolkit.layout.processors import Transformation, TransformationInput
from prompt_toolkit.output import DummyOutput

from capt_local.report.input_line import InputLine, _SpelledOut


def shown(fragments: StyleAndTextTuples) -> Transformation:
    text = fragment_list_to_text(fragments)
    control = BufferControl(Buffer())
    return _SpelledOut().apply_transformation(
        TransformationInput(control, Document(text), 0, lambda at: at, fragments, 80, 24)
    )


def test_what_would_move_the_cursor_is_spelled_out_and_places_are_kept() -> None:
    made = shown([("class:a", "a\x1b\tb")])
    assert fragment_list_to_text(made.fragments) == "a\\x1b    b"
    assert [made.source_to_display(at) for at in range(6)] == [0, 1, 5, 9, 10, 11]
    assert [made.display_to_source(at) for at in (0, 1, 3, 4, 5, 8, 9, 10, 12)] == [
        *(0, 1, 1, 1, 2, 2, 3, 4, 6),
    ]


def test_plain_text_is_taken_as_it_is() -> None:
    # At every key, so a long note must not be gone through by character.
    fragments: StyleAndTextTuples = [("class:a", "fever und Übelkeit ")] * 3
    made = shown(fragments)
    assert made.fragments is fragments and made.display_to_source(7) == 7


def test_what_was_searched_for_is_forgotten_too() -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        line = InputLine(lambda _: (), lambda _: False)
        buffer = line._session.search_buffer
        buffer.text = "zyzzyva"
        buffer.append_to_history()
        for control in controls(line):
            control.search_state.text = "zyzzyva"
        assert "zyzzyva" in searched(line)
        line.forget()
        assert searched(line) == ""


def controls(line: InputLine) -> list[BufferControl]:
    found = line._session.app.layout.find_all_controls()
    return [each for each in found if isinstance(each, BufferControl)]


def searched(line: InputLine) -> str:
    """What stands in the line of the search, in its history and in the last search."""
    buffer = line._session.search_buffer
    states = [each.search_state.text for each in controls(line)]
    return "".join([buffer.text, *buffer.history.get_strings(), *states])
