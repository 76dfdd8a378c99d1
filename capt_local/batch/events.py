"""What a crew tells of its work, and what it asks of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from capt_local.batch import wire
from capt_local.batch.output import Failure
from capt_local.batch.process import Death


class Worker(Protocol):
    """What a `WorkerProcess` can do."""

    def tell(self, message: wire.Message) -> None:
        """Sends a message; never waits."""

    def event(self, seconds: float) -> wire.Message | Death | None:
        """What it says next."""

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, or does so in that time."""

    def kill(self) -> None:
        """Ends it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record.

    Attributes:
        key: of the record.
        answer: as `report.json.answer_object` gives it, or None.
        failure: why there is none.
    """

    key: int
    answer: dict[str, Any] | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What else happened: one of these is set.

    Attributes:
        loading: a role, and the share of its file that is checked, then loaded.
        ready: what a worker said once its models were loaded.
        died: why a worker died that is now replaced.
        unloaded: why the one that replaces it could not load the models, and the seconds until
            the next tries.
    """

    loading: tuple[str, float] | None = None
    ready: dict[str, Any] | None = None
    died: str = ""
    unloaded: tuple[str, float] | None = None
