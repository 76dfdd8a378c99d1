"""The report in a real browser: keys, mouse, print, colours, names; no network, no complaint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.decoding.options import FinishReason
from capt_local.report.answers import chance
from capt_local.report.html import page
from capt_local.report.views import visible
from tests.browser.conftest import Open, Opened
from tests.report.answers import an_answer
from tests.report.test_html import HOSTILE, said

ANSWER = an_answer(
    [
        (b"He has", None, 0.5),
        (b" pneumonia", b" a cold", 5.25),
        (b".", None, -1.0),
        (b"\n\n", None, 0.0),
        (b"Give", b"Take", 1.5),
        (b" 38 \xc2", None, 0.0),
        (b"\xb0", b"C", -2.5),
        (b"C.", None, 0.0),
        (b"", b" He", 0.75),
    ]
)
CELLS = ["He has", "pneumonia", ".", "\n\n", "Give", "38 °", "C.", ""]


@pytest.fixture
def shown(opens: Open) -> Opened:
    return opens(page(ANSWER))


def panel(opened: Opened) -> str:
    return " ".join(opened.text("#detail").split())


def test_what_is_shown_at_first(shown: Opened) -> None:
    assert shown.run("[...document.querySelectorAll('.t')].map(t => t.textContent)") == CELLS
    changed = shown.run("[...document.querySelectorAll('.t.c')].map(t => t.textContent)")
    assert changed == ["pneumonia", "Give", "38 °", ""]
    assert "Token 2 of 9" in panel(shown) and "would have written a cold (78 %)" in panel(shown)
    assert "+5.25 nats" in panel(shown)


def test_the_whole_text_can_be_walked_by_keys(shown: Opened) -> None:
    shown.page.locator("#t0").focus()
    shown.press("ArrowRight")
    assert shown.focused() == "t1" and "Token 2 of 9" in panel(shown)
    shown.press("End")
    assert shown.focused() == "t7" and "end of the answer" in panel(shown)
    shown.press("ArrowRight")
    assert shown.focused() == "t7"
    shown.press("Home", "n")
    assert shown.focused() == "t1"
    shown.press("n", "n")
    assert shown.focused() == "t5"
    assert "Tokens 6 to 7 of 9: parts of one sign" in panel(shown) and "\\xc2" in panel(shown)
    shown.press("p", "ArrowLeft")
    assert shown.focused() == "t3"
    status = shown.page.locator("#status").text_content()
    assert status == "\\n\\n, contrast +0.00 nats"
    # One place in the tab order, and it is the one that was left.
    assert shown.run("[...document.querySelectorAll('.t[tabindex=\"0\"]')].map(t => t.id)") == [
        "t3"
    ]
    shown.press("Home", "ArrowDown")
    assert shown.focused() == "t4"
    shown.press("ArrowUp")
    assert shown.focused() == "t0"


def test_a_pin_stays_until_it_is_let_go(shown: Opened) -> None:
    shown.page.locator("#t1").focus()
    shown.press("Enter", "ArrowRight")
    assert "Token 2 of 9" in panel(shown)
    assert shown.page.locator("#t1").get_attribute("aria-selected") == "true"
    shown.page.locator("#t4").hover()
    assert "Token 2 of 9" in panel(shown)
    shown.press("Escape")
    shown.page.locator("#t2").hover()
    assert "Token 3 of 9" in panel(shown)
    shown.press("Escape")
    assert not shown.page.locator("#detail").is_visible()
    shown.page.locator("#t1").click()
    shown.page.locator("#t4").hover()
    assert "Token 2 of 9" in panel(shown)
    shown.page.get_by_role("button", name="Close").click()
    assert shown.focused() == "t1" and shown.run("document.querySelectorAll('.pin').length") == 0


def test_the_chart_leads_to_the_token(shown: Opened) -> None:
    box = shown.page.locator("#chart").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + box["width"] * 4.5 / 40, box["y"] + 20)
    assert "Token 5 of 9" in panel(shown)
    shown.page.mouse.click(box["x"] + box["width"] * 1.5 / 40, box["y"] + 20)
    assert shown.focused() == "t1"


def test_a_row_of_the_table_leads_to_the_token(shown: Opened) -> None:
    row = shown.page.locator(".shifts tbody tr").filter(has_text="Take")
    for _ in range(2):  # also when the address is the same already
        row.get_by_role("link").click()
        assert shown.focused() == "t4" and "Token 5 of 9" in panel(shown)
        shown.press("Escape", "Home")


def test_the_script_and_the_table_tell_the_same_chances(opens: Open) -> None:
    contrasts = (0.004, 0.3, 1.7, 3.2, 6.9, 11.0)
    pieces = [(f" said{i}".encode(), b" other", x) for i, x in enumerate(contrasts)]
    opened = opens(page(an_answer(pieces)))
    for i, contrast in enumerate(contrasts):
        opened.page.locator(f"#t{i}").hover()
        told = re.findall(r"(?:< )?[\d.]+ %", panel(opened))
        row = opened.page.locator(".shifts tbody tr").filter(has_text=f"said{i}")
        cells = [cell for cell in row.locator("td").all_inner_texts() if "%" in cell]
        assert told[:5] == cells == [*cells[:3], chance(-1.0 - contrast), cells[4]]


def test_hostile_text_is_shown_and_does_nothing(opens: Open) -> None:
    answer = said(*(part for text in HOSTILE for part in (text, "|")))
    opened = opens(page(replace(answer, alone=answer)))
    strip = opened.run("document.getElementById('strip').textContent")
    assert strip.strip() == visible(answer.text.decode("utf-8"))
    for i in range(0, len(answer.steps), 5):
        opened.page.locator(".t").nth(i).focus()
        assert f"Token {i + 1} of" in panel(opened)
    assert opened.page.title().startswith("capt-local report")
    assert opened.run("document.scripts.length") == 2
    assert opened.run("document.querySelectorAll('img, [onerror], [onmouseover]').length") == 0


def test_even_a_forged_element_could_load_nothing(opens: Open) -> None:
    opened = opens(page(ANSWER))
    failed: list[str] = []
    opened.page.on("requestfailed", lambda request: failed.append(request.url))
    refused = opened.run(
        """() => new Promise((done) => {
            const names = [];
            document.addEventListener('securitypolicyviolation', (e) => {
                names.push(e.effectiveDirective);
                if (names.length === 4) done(names.sort());
            });
            document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x'}));
            const script = document.createElement('script');
            script.textContent = 'window.forged = 1';
            document.body.append(script);
            document.body.setAttribute('style', 'color: red');
            fetch('https://example.invalid/').catch(() => 0);
        })"""
    )
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-attr"]
    assert opened.run("window.forged") is None
    assert len(opened.said) >= 4  # the browser tells each of them
    assert failed and failed == opened.asked[1:]  # the driver sees them before they are refused
    opened.said.clear()
    del opened.asked[1:]


def test_text_from_right_to_left(opens: Open) -> None:
    words = ["المريض", " يعاني", " من", " السعال", " 38 °C", " ويأخذ", " ibuprofen", "."]
    opened = opens(
        page(an_answer((w.encode(), b"x" if i == 3 else None, 1.0) for i, w in enumerate(words)))
    )
    assert opened.run("getComputedStyle(document.getElementById('strip')).direction") == "rtl"
    first, fourth = (opened.page.locator(f"#t{i}").bounding_box() for i in (0, 3))
    assert first["x"] > fourth["x"]
    opened.page.locator("#t0").focus()
    opened.press("ArrowLeft", "ArrowLeft")  # to the left is on
    assert opened.focused() == "t2"
    opened.press("ArrowRight")
    assert opened.focused() == "t1"


def test_signs_of_several_tokens_are_one(opens: Open) -> None:
    heart = "🫀".encode()
    pieces = [heart[:2], heart[2:], b" ", "👩".encode(), b"\xe2\x80\x8d", "⚕️".encode(), b"\xc2"]
    opened = opens(page(an_answer((piece, None, 1.0) for piece in pieces)))
    texts = opened.run("[...document.querySelectorAll('.t')].map(t => t.textContent)")
    assert texts == ["🫀", " ", "👩\u200d⚕️", "\ufffd"]
    opened.page.locator("#t2").hover()
    assert "Tokens 4 to 6 of 7" in panel(opened)


def test_print_has_all_and_no_tools(opens: Open) -> None:
    opened = opens(page(replace(ANSWER, alone=ANSWER)))
    opened.page.emulate_media(media="print")
    for hidden in ("#detail", "#keys"):
        assert not opened.page.locator(hidden).is_visible()
    opened.run("dispatchEvent(new Event('beforeprint'))")
    for kept in (".badge", "#strip", ".legend", "#chart", ".shifts", ".more", "footer", ".beside"):
        assert opened.page.locator(kept).is_visible(), kept
    assert (
        opened.run("getComputedStyle(document.querySelector('.t.c')).printColorAdjust") == "exact"
    )
    assert opened.page.pdf().startswith(b"%PDF")


def test_without_scripts_the_text_and_the_table_are_there(opens: Open) -> None:
    opened = opens(page(ANSWER), java_script_enabled=False)
    assert "pneumonia" in opened.text("#strip") and "a cold" in opened.text(".shifts")
    assert "need the script" in opened.text("noscript")


def test_nothing_sticks_out_of_the_window(opens: Open) -> None:
    answer = an_answer([(b"a" * 200, b"b" * 200, 1.0), *((b" word", b" other", 1.0),) * 60])
    opened = opens(page(replace(answer, alone=answer)))
    opened.page.locator("#t0").focus()
    for width in (320, 420, 768, 1024, 1920):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.run("document.documentElement.scrollWidth") <= width, width


# For everyone: contrast, names and roles, in light and in dark.

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
