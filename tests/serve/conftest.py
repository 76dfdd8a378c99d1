"""A real server in a process of its own, and clients that reach it over loopback."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.browser.conftest import browser  # noqa: F401 - a fixture

CANARY = "Zebrafinch-4711"


@dataclass
class Running:
    """A server: its process, its address without a slash, its key, the address that it printed,
    and where its standard error goes."""

    process: subprocess.Popen[str]
    url: str
    key: str
    page: str
    errors: Path

    def client(self, **settings: Any) -> httpx2.Client:
        """A client with the key."""
        headers = {"authorization": f"Bearer {self.key}", **settings.pop("headers", {})}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, **settings)

    def metric(self, name: str) -> int:
        """A number that /metrics tells."""
        with self.client() as client:
            text = client.get("/metrics").text
        return int(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])

    def stop(self) -> tuple[int, str]:
        """Ends it with Ctrl-C; its exit code, and all that it wrote on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code, self.errors.read_text()


Starts = Callable[..., Running]


def start(folder: Path, *flags: str, key: str = "") -> Running:
    errors = folder / "errors"
    command = [sys.executable, "-m", "capt_local", "serve", "--port", "0", "-t", "1", "-n", "40"]
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=stream, text=True
        )
    assert process.stdout is not None
    page = process.stdout.readline().strip()
    found = re.fullmatch(r"(https?://[^/]+)/(?:#key=(.*))?", page)
    assert found is not None, errors.read_text()
    return Running(process, found[1], found[2] or key, page, errors)


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, no_settings_of_this_machine: None
) -> Iterator[Running]:
    """One for all tests; at its end it has written nothing that came from a request."""
    running = start(tmp_path_factory.mktemp("server"), "--parallel", "4")
    yield running
    code, written = running.stop()
    assert code == 130
    assert len(written.splitlines()) == 1 and CANARY not in written, written


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Starts]:
    """Starts servers of a test's own."""
    made: list[Running] = []

    def call(*flags: str, key: str = "") -> Running:
        made.append(start(tmp_path, *flags, key=key))
        return made[-1]

    yield call
    for running in made:
        running.stop()


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """These tests use loopback; the guard of the interpreter refuses everything else."""
    yield
