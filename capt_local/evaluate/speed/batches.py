"""What a batch of several tokens costs beside one token, for each model: the price of a draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capt_local.engine.llama import LlamaModel
from capt_local.runtime import Runtime

SIZES = (1, 4, 8, 16)
_DEPTH = 256
_REPETITIONS = 7


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Time of a batch with a row of logits for every token.

    Attributes:
        one: seconds of one token.
        relative: the time of larger batches over that, by their tokens.
    """

    one: float
    relative: Mapping[int, float]

    def as_object(self) -> dict[str, object]:
        """For a script."""
        return {
            "one_token_ms": 1000 * self.one,
            "relative": {str(size): cost for size, cost in self.relative.items()},
        }


def batch_costs(
    runtime: Runtime, progress: Callable[[float], None] = lambda _: None
) -> dict[str, BatchCost]:
    """Measures the models of a runtime one after the other, and leaves their caches empty.

    Args:
        runtime: whose answer has ended.
        progress: called with the part that is done.

    Returns:
        By role.

    Raises:
        Cancelled: `progress` said so, or the models were told to stop.
    """
    runtime.forget()
    probes = {role: _Probe(model) for role, model in runtime.models.items()}
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

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._depth = min(_DEPTH, model.context_limit // 2)
        self._tokens = _some_tokens(model, self._depth + max(SIZES))
        room = min(model.max_rows, model.context_limit - self._depth)
        self._times: dict[int, list[float]] = {size: [] for size in SIZES if size <= room}
        self._prepare()

    def run(self, *, keep: bool) -> None:
        """One batch of each size."""
        for size, times in self._times.items():
            started = time.perf_counter()
            self._model.extend(self._tokens[self._depth : self._depth + size], size)
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
