"""How far a run is: counts, speed, and how long it will still take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from capt_local.batch.output import OK, OutputLine


@dataclass(slots=True)
class Progress:
    """Counts what is done now.

    Attributes:
        total: records of this run, those that were done before left out.
        before: records that were done before.
        by_code: records done now, by `ok` or the code of their error.
        answer_tokens: of the answers that were made now.
        prompt_tokens: of their prompts, in the model that leads.
        clock: seconds, from any beginning.
        started: when the models were loaded; None before.
        began: when the run began.
    """

    total: int
    before: int = 0
    by_code: Counter[str] = field(default_factory=Counter)
    answer_tokens: int = 0
    prompt_tokens: int = 0
    clock: Callable[[], float] = time.monotonic
    started: float | None = None
    began: float = 0.0

    def __post_init__(self) -> None:
        """Starts the clock."""
        self.began = self.clock()

    def ready(self) -> None:
        """The models are loaded, for the first time or again."""
        if self.started is None:
            self.started = self.clock()

    def add(self, line: OutputLine) -> None:
        """Counts a line."""
        self.by_code[line.code] += 1
        if line.response is not None:
            usage = line.response["body"]["usage"]
            self.answer_tokens += usage["completion_tokens"]
            self.prompt_tokens += usage["prompt_tokens"]

    @property
    def done(self) -> int:
        """Records done now, failed ones among them."""
        return self.by_code.total()

    @property
    def failed(self) -> int:
        """Records that failed now."""
        return self.done - self.by_code[OK]

    @property
    def share(self) -> float:
        """The part of this run that is done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds(self) -> float:
        """Since the models were loaded."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def speed(self) -> float:
        """Tokens of answers a second."""
        return self.answer_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the end, as records took so far; None before the first."""
        if not self.done:
            return None
        return self.seconds / self.done * (self.total - self.done)

    def as_object(self) -> dict[str, Any]:
        """What the run did, for JSON."""
        failed = {code: count for code, count in sorted(self.by_code.items()) if code != OK}
        seconds = self.seconds
        return {
            "records": self.total,
            "done": self.by_code[OK],
            "failed": failed,
            "already_done": self.before,
            "left": self.total - self.done,
            "answer_tokens": self.answer_tokens,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens_per_second": round(self.speed, 3),
            "records_per_second": round(self.done / seconds, 6) if seconds > 0 else 0.0,
            "seconds": round(self.clock() - self.began, 3),
            "load_seconds": round((self.started or self.clock()) - self.began, 3),
        }
