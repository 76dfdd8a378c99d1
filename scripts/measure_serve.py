"""What `capt-local serve` adds to the engine: speed through HTTP beside that in process.

    python -m scripts.measure_serve [--threads 2] [--rounds 5] [--page]

Each prompt is answered by a server with the demo and by `generate_many` in this process, one after
the other, so that drift of the machine meets both. `--page` opens the page (extra "browser").
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx2

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Request, Runtime

NOTE = (
    "A {age}-year-old patient came with dyspnea and swelling of both legs for three days. She had "
    "stopped her furosemide. Chest x-ray showed pleural effusions and the ejection fraction was 35 "
    "percent. Troponin was negative. She was given intravenous furosemide and lost four kilograms. "
)
TOKENS, MANY = 80, 8


class Timed(NamedTuple):
    """One answer: seconds to its first token, and its tokens a second from there on."""

    first: float
    speed: float


def timed(stamps: list[float], started: float) -> Timed:
    """From the moments at which tokens came."""
    speed = (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9) if len(stamps) > 1 else 0.0
    return Timed(stamps[0] - started, speed)


class Engine:
    """The demo in this process."""

    def __init__(self, threads: int) -> None:
        self.runtime = Runtime.open("demo", load=LoadOptions(threads=threads), check=False)
        self.many([prompt(0)])

    def many(self, prompts: list[str]) -> list[Timed]:
        """Answers all at once."""
        stamps: list[list[float]] = [[] for _ in prompts]

        def note(own: list[float]) -> Callable[[Any, Any], None]:
            return lambda made, step: own.append(time.perf_counter())

        combine = CombineOptions(alphas=self.runtime.bundle.defaults.alphas)
        options = GenerateOptions(max_tokens=TOKENS, combine=combine)
        pairs = zip(prompts, stamps, strict=True)
        asked = [Request(text, options, on_step=note(own)) for text, own in pairs]
        started = time.perf_counter()
        for result in self.runtime.generate_many(asked, parallel=MANY, reuse=True):
            assert result.error is None
        return [timed(own, started) for own in stamps]


class Server:
    """The demo behind HTTP."""

    def __init__(self, threads: int) -> None:
        command = [sys.executable, "-m", "capt_local", "serve", "--port", "0",
                   "-t", str(threads), "--parallel", str(MANY)]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.page = self.process.stdout.readline().strip()
        self.url, _, key = self.page.partition("/#key=")
        headers = {"authorization": f"Bearer {key}"}
        self.client = httpx2.Client(base_url=self.url, headers=headers, timeout=120)
        self.one(prompt(0))

    def one(self, text: str) -> Timed:
        """One stream."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS}
        stamps, started = list[float](), time.perf_counter()
        with self.client.stream(
            "POST", "/v1/chat/completions", json=body | {"stream": True}
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {") and '"finish_reason":null' in line:
                    stamps.append(time.perf_counter())
        return timed(stamps, started)

    def tokens(self, text: str) -> tuple[int, int]:
        """Tokens of a prompt, and those of them that were not read again."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
        usage = self.client.post("/v1/chat/completions", json=body).json()["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def prompt(number: int, words: int = 150) -> str:
    """A note that no other one begins as."""
    text = NOTE.format(age=20 + number) * (words // 50)
    return f"{number}. {text}\n\nSummarize the note."


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def of_page(server: Server) -> Iterator[tuple[float, float]]:
    """Seconds from the click to the first visible token, and those of the prompt alone."""
    from playwright.sync_api import sync_playwright

    from scripts.make_screenshot import browser_flags, browser_path

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=browser_flags())
        page = browser.new_page()
        page.goto(server.page)
        page.wait_for_selector("#library label")
        for number in range(3):
            page.fill("#note", prompt(700 + number, 500).partition("\n\n")[0])
            page.wait_for_timeout(800)
            with page.expect_response("**/v1/chat/completions") as response:
                took = page.evaluate(
                    """() => new Promise((done) => {
                      const strip = document.getElementById("strip"), started = performance.now();
                      const watch = new MutationObserver(() => strip.querySelector(".t") &&
                        requestAnimationFrame(() => done(performance.now() - started)));
                      watch.observe(strip, { childList: true });
                      document.getElementById("write").click();
                    })"""
                )
            page.wait_for_selector("#stop", state="hidden", timeout=120_000)
            last = response.value.text().strip().split("\n\n")[-2]
            yield took / 1000, json.loads(last[6:])["timings"]["prompt_seconds"]
        browser.close()


def main() -> None:
    """Prints the table of docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    engine, server = Engine(given.threads), Server(given.threads)
    try:
        pairs = []
        for number in range(given.rounds):
            own = engine.many([prompt(100 + number)])[0]
            pairs.append((own, server.one(prompt(100 + number))))
        first = statistics.median(http.first - own.first for own, http in pairs)
        ratio = statistics.median(http.speed / own.speed for own, http in pairs)
        print(f"time to the first token over the engine's own: {1000 * first:.1f} ms")
        print(f"tokens/s of one stream, HTTP / in process: {ratio:.3f}")
        texts = [prompt(200 + number) for number in range(MANY)]
        others = [prompt(300 + number) for number in range(MANY)]
        own_row = seconds(lambda: [engine.many([text]) for text in others])
        row = seconds(lambda: [server.one(text) for text in others])
        own_once = seconds(lambda: engine.many(texts))
        with ThreadPoolExecutor(MANY) as pool:
            once = seconds(lambda: list(pool.map(server.one, texts)))
        print(f"{MANY} at once / one after the other: {row / once:.3f} through HTTP, "
              f"{own_row / own_once:.3f} in process")  # fmt: skip
        again = server.tokens(prompt(400)), server.tokens(prompt(400) + " Be short.")
        print(f"same note twice, prompt tokens and those not read again: {again}")
        if given.page:
            for shown, read in of_page(server):
                print(f"page, note of 500 words: first token after {1000 * shown:.0f} ms, prompt "
                      f"alone {1000 * read:.0f} ms")  # fmt: skip
    finally:
        server.process.terminate()
        server.process.wait()
        engine.runtime.close()


if __name__ == "__main__":
    main()
