"""What a batch of several tokens costs beside one token, for each model: the price of a draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capt_local.engine.llama import LlamaModel
from capt_local.runtime import Runtime

SIZES = (*range(1, 9), 16)
# What came is measured in its own size up to here. Further on, where kernels are full, some are,
# and lines are drawn between them.
_EXACT = 32
_DEPTH, _SHORT_DEPTH = 256, 16
_REPETITIONS = 7


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Time of a batch with a row of logits for every token, as far as rows are read at once.

    Attributes:
        one: seconds of one token.
        relative: the time of batches over that, by their tokens; that of one is 1.
    """

    one: float
    relative: Mapping[int, float]

    def seconds(self, size: int) -> float:
        """Time of a batch of so many tokens: measured, or between two that were."""
        sizes = sorted(self.relative)
        if size > sizes[-1]:  # it found no room behind the text of the measurement
            return self.one * self.relative[sizes[-1]] * size / sizes[-1]
        return float(self.one * np.interp(size, sizes, [self.relative[each] for each in sizes]))

    def as_object(self) -> dict[str, object]:
        """For a script."""
        return {
            "one_token_ms": 1000 * self.one,
            "relative": {str(size): cost for size, cost in self.relative.items()},
        }


def sizes_to_measure(came: Collection[int]) -> list[int]:
    """Sizes whose price says what batches of the sizes that came cost, in order.

    Args:
        came: of any batches, such as those of all modes.
    """
    found = {*SIZES, *(size for size in came if size <= _EXACT)}
    largest, rung = max(came, default=1), _EXACT
    while rung < largest:
        found.add(rung)
        rung *= 2
    return sorted(found | {largest})


def batch_costs(
    runtime: Runtime,
    came: Mapping[str, Collection[int]],
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, BatchCost]:
    """Measures the models of a runtime one after the other, and leaves their caches empty.

    Args:
        runtime: whose answer has ended.
        came: sizes of the batches whose price is wanted beside the usual ones, by role.
        progress: called with the part that is done.

    Returns:
        By role.

    Raises:
        Cancelled: `progress` said so, or the models were told to stop.
    """
    runtime.forget()
    probes = {
        role: _Probe(model, sizes_to_measure(came.get(role, ())))
        for role, model in runtime.models.items()
    }
    try:
        for repetition in range(_REPETITIONS + 1):
            progress(repetition / (_REPETITIONS + 1))
            for probe in probes.values():  # in turn, so that drift meets all
                probe.run(keep=repetition > 0)  # the first prepares llama.cpp for each size
        return {role: probe.cost() for role, probe in probes.items()}
    finally:
        for model in runtime.models.values():
            model.rewind(0)


class _Probe:
    """One model behind some text."""

    def __init__(self, model: LlamaModel, sizes: Sequence[int]) -> None:
        self._model = model
        # What cannot forget a part reads its text again before each batch, and its time depends
        # on that text little or not at all.
        depth = _DEPTH if model.can_rewind else _SHORT_DEPTH
        self._depth = min(depth, model.context_limit // 2)
        self._tokens = _some_tokens(model, self._depth + max(sizes))
        room = model.context_limit - self._depth
        self._times: dict[int, list[float]] = {size: [] for size in sizes if size <= room}
        self._prepare()

    def run(self, *, keep: bool) -> None:
        """One batch of each size."""
        for size, times in self._times.items():
            started = time.perf_counter()
            rows = min(size, self._model.max_rows)
            self._model.extend(self._tokens[self._depth : self._depth + size], rows)
            spent = time.perf_counter() - started
            if keep:
                times.append(spent)
            if not self._model.rewind(self._depth):  # it cannot forget a part
                self._prepare()

    def cost(self) -> BatchCost:
        # The fastest: whatever else runs on the machine can only add to it.
        least = {size: min(times) for size, times in self._times.items()}
        return BatchCost(least[1], {size: each / least[1] for size, each in least.items()})

    def _prepare(self) -> None:
        self._model.extend(self._tokens[: self._depth], 0)


def _some_tokens(model: LlamaModel, count: int) -> list[int]:
    """Tokens that are text; which ones makes no difference to the time."""
    text = model.vocabulary.is_text.nonzero()[0][:count].tolist()
    return [text[place % len(text)] for place in range(count)]
