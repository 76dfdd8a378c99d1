"""What `capt-local serve` adds to the engine: speed through HTTP beside that in process.

    python -m scripts.measure_serve [--threads 2] [--page]

Each prompt is answered by a server with the demo and by `generate_many` in this process, one after
the other, so that drift of the machine meets both. `--page` opens the page (extras browser, test).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from itertools import pairwise
from statistics import median

import httpx2
import psutil
import typer

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Request, Runtime

NOTE = (
    "A {age}-year-old patient came with dyspnea and swelling of both legs for three days. She had "
    "stopped her furosemide. Chest x-ray showed pleural effusions and the ejection fraction was 35 "
    "percent. Troponin was negative. She was given intravenous furosemide and lost four kilograms. "
)
TOKENS, MANY, CHAT = 80, 8, "/v1/chat/completions"
Stamps = list[float]  # the start, and the moments at which tokens came


def prompt(number: int, words: int = 150) -> str:
    """A note that no other one begins as."""
    text = NOTE.format(age=20 + number) * (words // 50)
    return f"{number}. {text}\n\nSummarize the note."


def cpu(process: psutil.Process) -> float:
    """Seconds of the processor that a process has used."""
    return process.cpu_times().user + process.cpu_times().system


def speed(stamps: Stamps) -> float:
    """Tokens a second, from the first one on."""
    return (len(stamps) - 2) / (stamps[-1] - stamps[1])


def in_process(runtime: Runtime, prompts: list[str]) -> list[Stamps]:
    """Answers all at once."""
    stamps = [[time.perf_counter()] for _ in prompts]

    def note(own: Stamps, *_: object) -> None:
        own.append(time.perf_counter())

    combine = CombineOptions(alphas=runtime.bundle.defaults.alphas)
    options = GenerateOptions(max_tokens=TOKENS, combine=combine)
    pairs = zip(prompts, stamps, strict=True)
    asked = [Request(text, options, on_step=partial(note, own)) for text, own in pairs]
    for result in runtime.generate_many(asked, parallel=MANY, reuse=True):
        assert result.error is None
    return stamps


def through_http(url: str, headers: dict[str, str], text: str) -> Stamps:
    """One stream, read by a client that costs little: it runs on the same processor."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "stream": True}
    stamps = [time.perf_counter()]
    with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
        connection.request("POST", CHAT, json.dumps(body), headers)
        for line in connection.getresponse():
            if b'"finish_reason":null' in line:
                stamps.append(time.perf_counter())
    return stamps


def reused(client: httpx2.Client, text: str) -> tuple[int, int]:
    """Tokens of a prompt, and those of them that were not read again."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
    usage = client.post(CHAT, json=body).json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def on_page(address: str) -> Iterator[tuple[float, float]]:
    """Seconds from the click to the first visible token, and those of the prompt alone."""
    from scripts.make_picture import browser

    with browser() as opened:
        page = opened.new_page()
        page.add_init_script(
            """const ask = fetch;
            window.fetch = async (...all) => {
              const found = await ask(...all);
              if (String(all[0]).includes("/completions")) window.body = found.clone().text();
              return found;
            };"""
        )
        page.goto(address)
        page.wait_for_selector("#library label")
        for number in range(3):
            page.fill("#note", prompt(700 + number, 500).partition("\n\n")[0])
            page.wait_for_timeout(800)
            shown = page.evaluate(
                """() => new Promise((done) => {
                  const strip = document.getElementById("strip"), started = performance.now();
                  const tell = () => done(performance.now() - started);
                  const seen = () => strip.firstChild && requestAnimationFrame(tell);
                  new MutationObserver(seen).observe(strip, { childList: true });
                  document.getElementById("write").click();
                })"""
            )
            page.wait_for_selector("#stop", state="hidden", timeout=120_000)
            last = page.evaluate("window.body").strip().split("\n\n")[-2]
            yield shown / 1000, json.loads(last.removeprefix("data: "))["timings"]["prompt_seconds"]


def main(threads: int = 2, page: bool = False) -> None:
    """Prints the figures of docs/results.md."""
    flags = ["--port", "0", "-t", str(threads), "--parallel", str(MANY)]
    command = [sys.executable, "-m", "capt_local", "serve", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = server.stdout.readline().strip() if server.stdout else ""
    url, _, key = address.partition("/#key=")
    load, headers = LoadOptions(threads=threads), {"authorization": f"Bearer {key}"}
    with (
        httpx2.Client(base_url=url, headers=headers, timeout=120) as client,
        Runtime.open("demo", load=load, check=False) as runtime,
        ThreadPoolExecutor(MANY) as pool,
    ):
        http, own = partial(through_http, url, headers), partial(in_process, runtime)
        again = reused(client, prompt(400)), reused(client, prompt(400) + " Be short.")
        print(f"same note twice, prompt tokens and those not read again: {again}")
        here, there = psutil.Process(), psutil.Process(server.pid)
        pairs, shares = [], []
        for text in map(prompt, range(100, 113)):
            used = [cpu(here), cpu(there)]
            stamps = own([text])[0]
            used[0] = cpu(here) - used[0]  # without the client
            pairs.append((stamps, http(text)))
            shares.append(used[0] / (cpu(there) - used[1]))
        del pairs[0], shares[0]  # warm up
        print(f"CPU time of an answer, in process / server: {median(shares):.3f}")
        more = median((b[1] - b[0]) - (a[1] - a[0]) for a, b in pairs)
        print(f"time to the first token over the engine's own: {1000 * more:.1f} ms")
        print(f"tokens/s, HTTP / in process: {median(speed(b) / speed(a) for a, b in pairs):.3f}")
        texts, others = list(map(prompt, range(200, 208))), list(map(prompt, range(300, 308)))
        times = [time.perf_counter()]
        for answers in (own, lambda some: list(pool.map(http, some))):
            for text in others:
                answers([text])
            times.append(time.perf_counter())
            answers(texts)
            times.append(time.perf_counter())
        row, once, http_row, http_once = (b - a for a, b in pairwise(times))
        print(f"8 at once / in turn: {http_row / http_once:.3f}, in process {row / once:.3f}")
        for shown, read in on_page(address) if page else ():
            print(f"page, 500 words: {1000 * shown:.0f} ms, prompt alone {1000 * read:.0f} ms")
    server.terminate()
    server.wait()


if __name__ == "__main__":
    typer.run(main)
