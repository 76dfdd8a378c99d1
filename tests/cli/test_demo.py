"""The demo: both answers, the changed tokens marked, the table, and what it is not for."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.cli.demo import visit
from capt_local.decoding.options import Method
from capt_local.errors import MemoryShortage, UsageError
from tests.cli.conftest import Run, Stdin
from tests.cli.fake_runtime import Script


def test_both_answers_are_shown_with_marks_and_a_table(run: Run, script: Script) -> None:
    result = run("demo", "{models}")
    assert result.code == 0
    assert "  It is [pneumonia].\n" in result.out
    assert '"a cold"' in result.out
    assert "not medical" in result.out
    assert "note: a notice of the generation" in result.err
    methods = [call["options"].method for call in script.calls if "asked" in call]
    assert methods == [Method.TARGET, Method.CAPT] * 2
    assert all(len(call["options"].stop) == 0 for call in script.calls if "asked" in call)


def test_the_visit_travels_with_the_package_and_is_the_prompt(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("demo", "{models}")
    asked = [call["asked"] for call in script.calls if "asked" in call]
    assert visit().count("\n") >= 10
    assert [visit() in messages[0].content for messages in asked[:2]] == [True] * 2
    assert [isinstance(text, str) and text.endswith(" who") for text in asked[2:]] == [True] * 2


def test_your_own_text_takes_the_place_of_the_visit(run: Run, script: Script) -> None:
    result = run("demo", "{models}", "-p", "Signs of asthma?")
    asked = [call["asked"] for call in script.calls if "asked" in call]
    assert [messages[0].content for messages in asked] == ["Signs of asthma?"] * 2
    assert "fictitious" not in result.out
    assert run("demo", "{models}", "-f", "-", stdin=Stdin(b"Fever?")).code == 0


def test_an_interrupt_ends_the_demo(run: Run, script: Script) -> None:
    script.press_at = 0
    result = run("demo", "{models}")
    assert result.code == 130
    assert "Largest shifts" not in result.out


@pytest.mark.parametrize(("error", "code"), [(UsageError("x"), 2), (MemoryShortage("x"), 4)])
def test_failures_have_their_codes(error: Exception, code: int, run: Run, script: Script) -> None:
    script.fail_at, script.error = -1, error
    assert run("demo", "{models}").code == code
