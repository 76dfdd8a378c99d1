"""The demo: both answers to one question, changed words marked, and what it is not for."""

from __future__ import annotations

import pytest

from capt_local.cli.demo import QUESTION, our_scene
from capt_local.decoding.options import Method
from capt_local.errors import MemoryShortage, UsageError
from tests.cli.conftest import Run, Stdin
from tests.cli.fake_runtime import Script


def test_both_answers_are_shown_with_marks_and_a_table(run: Run, script: Script) -> None:
    result = run("demo", "{models}")
    assert result.code == 0
    assert result.out.startswith("DRAFT")
    assert "  It is [pneumonia].\n" in result.out
    assert '"a cold"' in result.out
    assert "not medical" in result.out
    assert "note: a notice of the generation" in result.err
    calls = [call for call in script.calls if "asked" in call]
    assert [call["options"].method for call in calls] == [Method.TARGET, Method.CAPT]
    prompts = {call["asked"][0].content for call in calls}
    assert prompts == {f"{our_scene().note}\n\n{QUESTION}"}


def test_your_own_text_takes_the_place_of_the_note(run: Run, script: Script) -> None:
    result = run("demo", "{models}", "-p", "Signs of asthma?")
    asked = [call["asked"] for call in script.calls if "asked" in call]
    assert [messages[0].content for messages in asked] == ["Signs of asthma?"] * 2
    assert "fictitious" not in result.out
    assert run("demo", "{models}", "-f", "-", stdin=Stdin(b"Fever?")).code == 0


def test_an_interrupt_ends_the_demo(run: Run, script: Script) -> None:
    script.press_at = 0
    result = run("demo", "{models}")
    assert result.code == 130
    assert "Largest" not in result.out


@pytest.mark.parametrize(("error", "code"), [(UsageError("x"), 2), (MemoryShortage("x"), 4)])
def test_failures_have_their_codes(error: Exception, code: int, run: Run, script: Script) -> None:
    script.fail_at, script.error = -1, error
    assert run("demo", "{models}").code == code
