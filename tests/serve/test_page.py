"""The page in Chromium, against a running server: a note, an answer, what the expert changed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.serve.conftest import CANARY, Running, Starts
from tests.tiny_models import tiny_adapter, tiny_gguf

AUDIT = (Path(__file__).parents[1] / "browser" / "audit.js").read_text("utf-8")
NOTE = (
    f"{CANARY}, 58-year-old woman, dyspnea on exertion for 3 days. Metoprolol 25 mg twice a day. "
    "Troponin negative. <img src=x onerror=alert(1)> Ejection fraction 35%."
)
WAIT = {"timeout": 60_000}

Opens = Callable[..., Any]


@pytest.fixture
def opens(browser: Any, server: Running) -> Iterator[Opens]:
    """Opens the page; it speaks to its own server alone, and says nothing to the console."""
    made: list[tuple[Any, list[str]]] = []

    def call(address: str = server.page, **settings: Any) -> Any:
        settings = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True} | settings
        context = browser.new_context(**settings)
        page, wrong = context.new_page(), list[str]()
        made.append((context, wrong))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("console", lambda said: wrong.append(said.text))
        origin = address.split("#")[0]
        page.on(
            "request", lambda asked: asked.url.startswith(origin) or wrong.append(asked.url[:100])
        )
        page.goto(address)
        return page

    yield call
    for context, wrong in made:
        # What a browser says of an answer that is no 200, or of a server that is out of reach.
        found = [each for each in wrong if "Failed to load" not in each and "blob:" not in each]
        context.close()
        assert found == []


def ready(page: Any) -> Any:
    page.wait_for_selector("#library label")
    return page


def write(page: Any, note: str = NOTE, task: str = "") -> None:
    page.fill("#note", note)
    if task:
        page.get_by_role("radio", name=task).check(force=True)
    page.click("#write")
    page.wait_for_selector("#stop", state="hidden", **WAIT)


def text(page: Any, selector: str) -> str:
    return str(page.locator(selector).inner_text())


def at_first_token(page: Any, *, stop: bool) -> None:
    """At the next answer's first token, however slow this test is, notes if it can be stopped."""
    page.evaluate(
        """(end) => {
          const watch = new MutationObserver(() => {
            if (!document.querySelector("#strip .t")) return;
            watch.disconnect();
            const stop = document.getElementById("stop");
            window.streams = !stop.hidden;
            if (end) stop.click();
          });
          watch.observe(document.getElementById("strip"), { childList: true, subtree: true });
        }""",
        stop,
    )


def test_a_dropped_note_is_answered_and_every_change_explained(
    opens: Opens, server: Running
) -> None:
    page = ready(opens())
    page.evaluate(
        """(note) => {
          const data = new DataTransfer();
          data.items.add(new File([note], "note.txt", { type: "text/plain" }));
          for (const type of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(
              new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        NOTE,
    )
    expect(page.locator("#note")).to_have_value(NOTE)
    assert page.locator("#drop").is_hidden()
    page.focus("#note")
    at_first_token(page, stop=False)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#strip .t", **WAIT)
    page.wait_for_selector("#stop", state="hidden", **WAIT)
    assert page.evaluate("window.streams")
    shown = text(page, "#strip").replace("\u25a0 end", "").strip()
    with server.client() as client:
        task = client.get("/about").json()["tasks"][0]
        prompt = f"{NOTE}\n\n{task['prompt']}"
        body = {"messages": [{"role": "user", "content": prompt}],
                "max_tokens": task["max_tokens"], "capt": {}}  # fmt: skip
        answer = client.post("/v1/chat/completions", json=body).json()
    content = answer["choices"][0]["message"]["content"]
    assert shown[:20] == content[:20] and page.locator("#strip img").count() == 0
    # A click on what the expert changed shows the three models.
    assert page.locator("#strip .t.c").count() > 0
    page.locator("#strip .t.c").first.click()
    detail = text(page, "#detail")
    for name in ("General model", "Clinical expert", "Expert's base", "Together", "nats"):
        assert name in detail
    assert "changed by the expert" in detail and detail.count("%") >= 12
    counts = text(page, "#counts")
    assert len(re.findall(r"\d+ of 1,024", counts)) == 3
    assert re.search(r"The expert changed [\d,]+ of [\d,]+ words", text(page, "#figures"))


def test_everything_by_keyboard(opens: Opens) -> None:
    page = ready(opens())
    press = page.keyboard.press
    page.focus("#note")
    page.keyboard.insert_text(NOTE)
    press("Tab")
    for _ in range(3):
        if page.evaluate("document.activeElement.type") == "radio":
            break
        press("Tab")
    press("ArrowRight")
    assert page.evaluate("document.querySelector('#library :checked').value") == "problems"
    press("Control+Enter")
    page.wait_for_selector("#stop", state="visible", **WAIT)
    assert page.evaluate("document.activeElement.id") != "body"
    page.wait_for_selector("#stop", state="hidden", **WAIT)
    page.locator("#strip .t[tabindex='0']").focus()
    press("ArrowRight")  # the same script as in a report, whose tests walk further
    assert page.evaluate("document.activeElement.id") == "t1"
    assert page.locator("#detail").is_visible()
    press("Escape")
    assert page.locator("#detail").is_hidden()


def test_beside_the_answer_without_the_expert_and_the_report(opens: Opens) -> None:
    page = ready(opens())
    page.check("#beside")
    write(page)
    assert text(page, "#plain") and text(page, "#plain") != text(page, "#strip")
    with page.expect_download() as saved:
        page.click("#save")
    report = Path(saved.value.path()).read_text("utf-8")
    assert saved.value.suggested_filename == "capt-report.html"
    assert "What the expert changed" in report and "The target alone" in report
    assert "58-year-old" in report and "<img src=x" not in report


def test_statements_lead_to_their_places_in_the_note(opens: Opens) -> None:
    page = ready(opens())
    note = f"\U0001f600 {NOTE}"
    answers: list[str] = []

    def keep(route: Any) -> None:
        answered = route.fetch(timeout=60_000)
        answers.append(answered.text())
        route.fulfill(response=answered)

    page.route("**/v1/chat/completions", keep)
    write(page, f"\n{note}")
    last = answers[0].split("\n\n")[-3]  # in front of [DONE]
    found = json.loads(last.removeprefix("data: "))["capt"]["sources"]
    statements = found["statements"]
    rows = page.locator("#sources li")
    assert rows.count() == len(statements) > 0
    assert page.locator("#strip [data-s]").count() == len(statements)
    for one, row in zip(statements, rows.all(), strict=True):
        assert ("not found" in row.inner_text()) != one["supported"]
        assert row.locator("button").count() == (one["source"] is not None)
        if one["source"] is not None:
            start, end = one["source"]
            row.locator("button").click()
            assert page.evaluate("document.activeElement.id") == "note"
            assert page.evaluate("getSelection().toString()") == note[start:end]
    lacking = any(fact["match"] == "unsupported" for fact in found["facts"])
    assert (page.locator("#strip .t.u").count() > 0) == lacking
    page.fill("#note", "Another note.")
    if page.locator("#sources button").count():
        page.locator("#sources button").first.click()
        assert "has changed" in text(page, "#toast")


def test_a_table_of_medications(opens: Opens) -> None:
    page = ready(opens())
    page.locator("summary").click()
    page.fill("#length", "150")
    write(page, task="Medications as a table")
    if page.locator("#table table").count():
        heads = page.locator("#table th").all_inner_texts()
        assert [head.lower() for head in heads] == ["name", "dose", "route", "frequency"]
    else:
        assert text(page, "#strip").startswith("{")


def test_stop_again_copy_and_print(opens: Opens, server: Running) -> None:
    page = ready(opens(permissions=["clipboard-read", "clipboard-write"]))
    page.fill("#note", NOTE)
    page.get_by_role("radio", name="Letter to the patient").check(force=True)
    at_first_token(page, stop=True)
    page.click("#write")
    page.wait_for_selector("#strip .t", **WAIT)
    page.wait_for_selector("#write", state="visible", **WAIT)
    assert "Stopped" in text(page, "#figures") and page.locator("#save").is_disabled()
    write(page)
    first = text(page, "#strip")
    page.click("#copy")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == first.replace("\u25a0 end", "").strip()
    page.click("#again")
    page.wait_for_selector("#stop", state="hidden", **WAIT)
    assert text(page, "#strip") != first  # drawn
    page.emulate_media(media="print")
    for selector in ("#note", "#tools", "#keys"):
        assert page.locator(selector).is_hidden()
    assert page.locator("#strip").is_visible() and page.locator("#printed").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_a_reload_keeps_nothing_and_a_lost_server_loses_no_note(opens: Opens) -> None:
    page = ready(opens())
    write(page)
    kept = page.evaluate(
        """async () => [localStorage.length, sessionStorage.length, document.cookie,
          (await indexedDB.databases()).length, (await caches.keys()).length]"""
    )
    assert kept == [0, 0, "", 0, 0]
    page.reload()
    ready(page)
    assert page.input_value("#note") == "" and page.locator("#strip .t").count() == 0
    page.fill("#note", NOTE)
    page.context.set_offline(True)
    page.click("#write")
    page.wait_for_selector("#problem", **WAIT)
    assert "cannot be reached" in text(page, "#problem") and page.input_value("#note") == NOTE
    page.context.set_offline(False)
    write(page)
    assert text(page, "#strip")


def test_a_note_that_does_not_fit_is_refused_with_the_counts(opens: Opens) -> None:
    page = ready(opens())
    write(page, "pneumonia " * 3000)
    problem = text(page, "#problem")
    assert re.search(r"general model [\d,]+, clinical expert [\d,]+, expert's base [\d,]+", problem)
    assert "1,024 fit" in problem
    page.locator("#counts .over").nth(2).wait_for()


def test_scales_of_adapters_and_the_best_of_several(
    opens: Opens, starts: Starts, tmp_path: Path
) -> None:
    target, base, lora = (tmp_path / name for name in ("t.gguf", "b.gguf", "lora.gguf"))
    for seed, path in enumerate((target, base)):
        tiny_gguf(path, seed=seed)
    tiny_adapter(lora, seed=3)
    models = ["--target", str(target), "--base", str(base), "--expert-adapter", str(lora)]
    page = ready(opens(starts(*models, "-n", "6", "--template", "chatml").page))
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Scale of lora.gguf on the clinical expert").fill("0")
    page.get_by_label("Answers to choose the best from").select_option("4")
    with page.expect_request("**/completions") as found:
        write(page)
    body = found.value.post_data_json
    assert body["capt"]["adapter_scales"] == {"expert": [0]} and body["best_of"] == 4
    assert page.locator("#problem").is_hidden() and page.locator("#strip .t").count() > 1
    assert page.locator("#strip .c").count() == 0  # an expert that is its base changes nothing


def test_two_browsers_at_once(opens: Opens) -> None:
    pages = [ready(opens()) for _ in range(2)]
    for number, page in enumerate(pages):
        page.fill("#note", f"Patient {number}. {NOTE}")
        page.click("#write")
    for page in pages:
        page.wait_for_selector("#stop", state="hidden", **WAIT)
        assert text(page, "#strip") and page.locator("#problem").is_hidden()


def test_without_its_key_the_page_asks_for_it(opens: Opens, server: Running) -> None:
    page = opens(server.url + "/")
    page.wait_for_selector("#gate[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#gate[open]")
    page.fill("#key", server.key)
    page.keyboard.press("Enter")
    ready(page)
    assert page.locator("#gate").is_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_contrast_names_and_no_scrolling_aside(opens: Opens, scheme: str, width: int) -> None:
    """320 points are a window of 1,280 at 400 %."""
    page = ready(opens(color_scheme=scheme, viewport={"width": width, "height": 256}))
    page.check("#beside")
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for _ in range(2):
        found = page.evaluate(AUDIT)
        nameless = [one for one in found["nameless"] if not re.search("hidden|presentation", one)]
        assert found["faint"] == [] and nameless == [] and found["dangling"] == []
        assert found["twice"] == [] and found["headings"] == 1 and found["scopeless"] == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if page.locator("#strip .t").count() == 0:
            write(page)
            page.check("#heat")
            page.locator("#strip .t").first.click()


def test_tasks_of_the_site_and_texts_of_files(opens: Opens, starts: Starts, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "summary.toml").write_text('title = "<b>Ours</b>"\nprompt = "Say it."\norder = 1\n')
    server = starts("--tasks", str(folder))
    page = ready(opens(server.page))
    assert page.locator("#library label").first.inner_text().strip() == "<b>Ours</b>"
    assert page.locator("#library label").count() == 5
    latin = {"name": "note.txt", "mimeType": "text/plain", "buffer": b"Gr\xf6\xdfe"}
    page.set_input_files("#file", files=[latin])
    page.wait_for_selector("#toast.shown")
    assert "not read" in text(page, "#toast") and page.input_value("#note") == ""
    rich = {"name": "a.rtf", "mimeType": "text/rtf", "buffer": rb"{\rtf1\ansi Creatinine 1.4\par}"}
    page.set_input_files("#file", files=[rich])
    expect(page.locator("#note")).to_have_value(re.compile(r"^Creatinine 1\.4\s*$"))


def test_nothing_is_sent_to_another_program_that_took_the_port(
    opens: Opens, starts: Starts
) -> None:
    """The server ends, its page stays open, and another account listens where it was."""
    server = starts()
    page = ready(opens(server.page))
    server.stop()
    received: list[bytes] = []

    class Another(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("content-length", 0))
            received.append(bytes(self.headers) + self.rfile.read(size))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"proofs": ["00"]}')

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", int(server.url.rpartition(":")[2])), Another) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page.fill("#note", NOTE)
        expect(page.locator("#gate")).to_be_visible(**WAIT)
        page.fill("#key", server.key)
        page.click("#gate-form button")
        page.wait_for_timeout(1000)
        other.shutdown()
    assert received
    assert CANARY.encode() not in b"".join(received)
    assert server.key.encode() not in b"".join(received)
