"""Opens pages in a real browser, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scripts import make_picture


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that is on this machine; none is ever fetched.

    It is started before the fixture that forbids sockets to each test, since its driver needs a
    pair of them; the pages' own requests are watched by `Opened`.
    """
    try:
        with make_picture.browser() as opened:
            yield opened
    except FileNotFoundError as error:
        pytest.skip(str(error))


@dataclass
class Opened:
    """A page (of Playwright), and what it did that it should not."""

    page: Any
    said: list[str] = field(default_factory=list)  # to the console, and uncaught errors
    asked: list[str] = field(default_factory=list)  # addresses, its own first

    def text(self, selector: str) -> str:
        """The text of an element, as it is shown."""
        return str(self.page.locator(selector).inner_text())

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a piece of JavaScript."""
        return self.page.evaluate(script, *arguments)

    def focused(self) -> str:
        """The id of the element that has the focus."""
        return str(self.run("document.activeElement.id"))

    def press(self, *keys: str) -> None:
        """Presses keys one after the other."""
        for key in keys:
            self.page.keyboard.press(key)


Open = Callable[..., Opened]


@pytest.fixture
def opens(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the source of a page from a file; what went wrong in it fails the test."""
    made: list[tuple[Any, Opened]] = []

    def call(source: str, **settings: Any) -> Opened:
        file = tmp_path / f"report-{len(made)}.html"
        file.write_text(source, "utf-8")
        settings = {"viewport": {"width": 1280, "height": 900}} | settings
        context = browser.new_context(**settings)
        opened = Opened(context.new_page())
        made.append((context, opened))
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.goto(file.as_uri())
        return opened

    yield call
    for context, opened in made:
        said, asked = list(opened.said), list(opened.asked)
        context.close()
        assert said == []
        assert [url.split("/")[-1].split("#")[0][:7] for url in asked] == ["report-"]
