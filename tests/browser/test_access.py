"""The report for everyone: contrast, names and roles, in light and in dark."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.decoding.step import FinishReason
from capt_local.report.html import page
from tests.browser.conftest import Open
from tests.report.answers import an_answer

AUDIT = (Path(__file__).parent / "audit.js").read_text("utf-8")
PIECES = [(f" word{i}".encode(), b"other" if i % 2 else None, i / 2 - 5) for i in range(20)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_and_everything_has_a_name(opens: Open, scheme: str) -> None:
    answer = an_answer([*PIECES, (b"\n", None, 1.0), (b"", b"x", 1.0)], FinishReason.LENGTH)
    opened = opens(page(replace(answer, alone=answer)), color_scheme=scheme)
    opened.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    opened.page.locator("#t3").click()
    found = opened.run(AUDIT)
    ground = sum(map(int, re.findall(r"\d+", found.pop("ground"))[:3]))
    assert (ground < 200) == (scheme == "dark")
    assert found == {
        "faint": [], "nameless": [], "dangling": [], "twice": [],
        "headings": 1, "strangers": 0, "scopeless": 0,
    }  # fmt: skip


def test_the_audit_sees_what_it_should(opens: Open) -> None:
    opened = opens(
        "<!doctype html><body style='background: #fff'><p style='color: #aaa'>faint</p>"
        "<button id=a></button><p id=a aria-labelledby=b></p><table><th>x</table>"
    )
    found = opened.run(AUDIT)
    assert [text for text, *_ in found["faint"]] == ["faint"]
    assert len(found["nameless"]) == 1 and len(found["dangling"]) == 1
    assert (found["twice"], found["headings"], found["scopeless"]) == (["a"], 0, 1)
