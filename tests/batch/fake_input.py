"""An input and an output in memory, and a worker that is a real process without models."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capt_local.batch.opening import Opening
from capt_local.batch.output import OutputLine
from capt_local.batch.packing import packed
from capt_local.batch.process import WorkerProcess
from capt_local.batch.records import InputChanged, Record, RecordSettings
from capt_local.bundle import store

ROOT = Path(__file__).resolve().parents[2]


class FakeSource:
    """Prompts by their ids; those in `changed` cannot be read again."""

    def __init__(self, prompts: Mapping[str, str], changed: tuple[str, ...] = ()) -> None:
        self.ids = tuple(prompts)
        self._prompts, self._changed = prompts, changed

    def record(self, place: int) -> Record:
        id = self.ids[place]
        if id in self._changed:
            raise InputChanged(f"The input, line {place + 1}: it has changed.")
        number, digest = self.line(place)
        return Record(number, id, None, self._prompts[id], RecordSettings(), digest)

    def line(self, place: int) -> tuple[int, str]:
        prompt = self._prompts[self.ids[place]]
        return place + 1, hashlib.sha256(prompt.encode()).hexdigest()


class FakeJournal:
    """Keeps lines; raises `error` where one is set."""

    def __init__(self) -> None:
        self.lines: list[OutputLine] = []
        self.error: Exception | None = None

    def append(self, line: OutputLine) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append(line)

    @property
    def answers(self) -> dict[str, str]:
        """What was said, or the code of the error, by id; fails where an id comes twice."""
        assert len({line.id for line in self.lines}) == len(self.lines)
        return {line.id: said(line) for line in self.lines}


def said(line: OutputLine) -> str:
    if line.response is None:
        return line.code
    content: str = line.response["body"]["choices"][0]["message"]["content"]
    return content


def start_worker(folder: Path) -> WorkerProcess:
    """The process of `fake_worker`."""
    os.environ["PYTHONPATH"] = str(ROOT)
    return WorkerProcess([sys.executable, "-m", "tests.batch.fake_worker", str(folder)])


def opening(parallel: int) -> dict[str, Any]:
    made: dict[str, Any] = packed(Opening(store.find("demo"), parallel=parallel))
    return made
