"""An input and an output in memory, and a worker that is a real process without models."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from capt_local.batch.ipc import WorkerConfig
from capt_local.batch.output import OutputLine
from capt_local.batch.records import BatchRecord, InputChanged
from capt_local.batch.supervisor import WorkerProcess
from capt_local.bundles import store


class FakeSource:
    """Prompts by their ids; those in `changed` cannot be read again."""

    def __init__(self, prompts: Mapping[str, str], changed: tuple[str, ...] = ()) -> None:
        self.ids = tuple(prompts)
        self._prompts, self._changed = prompts, changed

    def record(self, place: int) -> BatchRecord:
        id = self.ids[place]
        if id in self._changed:
            raise InputChanged(f"The input, line {place + 1}: it has changed.")
        number, digest = self.line(place)
        return BatchRecord(number, id, self._prompts[id], digest)

    def line(self, place: int) -> tuple[int, str]:
        prompt = self._prompts[self.ids[place]]
        return place + 1, hashlib.sha256(prompt.encode()).hexdigest()


class FakeJournal:
    """Keeps lines."""

    def __init__(self) -> None:
        self.lines: list[OutputLine] = []

    def append(self, *lines: OutputLine) -> None:
        self.lines += lines

    @property
    def answers(self) -> dict[str, str]:
        """What was answered, or the code of the error, by id; fails where an id comes twice."""
        assert len({line.record.id for line in self.lines}) == len(self.lines)
        return {line.record.id: said(line) for line in self.lines}


def said(line: OutputLine) -> str:
    if line.response is None:
        return line.code
    content: str = line.response["body"]["choices"][0]["message"]["content"]
    return content


def start_worker(folder: Path) -> WorkerProcess:
    """The process of `fake_worker`."""
    return WorkerProcess([sys.executable, "-m", "tests.batch.fake_worker", str(folder)])


def config(parallel: int) -> WorkerConfig:
    return WorkerConfig(store.find("demo"), parallel=parallel)
