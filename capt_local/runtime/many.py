"""Requests that are answered side by side, on lanes beside the models' own contexts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

from capt_local.decoding.assembly import Assembly
from capt_local.decoding.generation import Generation
from capt_local.decoding.many.asks import Answered, Ask
from capt_local.decoding.many.table import PromptOf, Table
from capt_local.decoding.step import Step
from capt_local.errors import CaptError
from capt_local.llama.lanes import Lanes
from capt_local.llama.many import open_lanes
from capt_local.llama.model import LlamaModel

Cancel = Callable[[], bool]


class Side:
    """The lanes of a runtime, made when they are first wanted and kept for the next time.

    Args:
        models: by role.
        assembly: of the same models.
        prompt_of: see `Table`.
    """

    def __init__(
        self, models: Mapping[str, LlamaModel], assembly: Assembly, prompt_of: PromptOf
    ) -> None:
        """Allocates nothing yet."""
        self._models = models
        self._assembly = assembly
        self._prompt_of = prompt_of
        self._lanes: dict[str, Lanes] = {}
        self._count = 0
        self._before: dict[str, int] = {}
        self._running: Generator[Answered, None, None] | None = None

    def answers(
        self, asks: Iterable[Ask], parallel: int, cancel: Cancel | None
    ) -> Iterator[Answered]:
        """See `Runtime.generate_many`; what still runs ends.

        Raises:
            MemoryShortage: so many lanes do not fit.
        """
        self.end()
        if parallel != self._count:
            self.close()
            self._lanes = open_lanes(self._models, parallel)
            self._count = parallel
        for lanes in self._lanes.values():
            lanes.should_stop = cancel
        table = Table(self._lanes, parallel, self._assembly, self._prompt_of, cancel)
        self._running = table.answers(asks)
        return self._running

    def decoded(self) -> dict[str, int]:
        """Tokens that the lanes of each model have decoded so far, by role."""
        now = {role: lanes.decoded for role, lanes in self._lanes.items()}
        return {role: now.get(role, 0) + self._before.get(role, 0) for role in self._models}

    def forget(self) -> None:
        """Empties the lanes; what still runs ends."""
        self.end()
        for lanes in self._lanes.values():
            for lane in lanes.lanes:
                lane.rewind(0)

    def end(self) -> None:
        """Ends what still runs; its answers are lost."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def close(self) -> None:
        """Frees the lanes."""
        self.end()
        self._before = self.decoded()
        for lanes in self._lanes.values():
            lanes.close()
        self._lanes.clear()
        self._count = 0


def one_by_one(
    generate: Callable[[Ask], Generation], asks: Iterable[Ask], cancel: Cancel | None
) -> Iterator[Answered]:
    """Answers requests one after the other.

    Args:
        generate: begins an answer.
        asks: taken when the one before has been answered.
        cancel: asked between them.
    """
    for index, ask in enumerate(asks):
        steps: list[Step] = []
        generation, failed = None, None
        try:
            generation = generate(ask)
            steps.extend(generation)  # also those before an error
        except CaptError as error:
            failed = error.with_traceback(None)
        yield Answered(index, generation, tuple(steps), failed)
        if cancel is not None and cancel():
            return
