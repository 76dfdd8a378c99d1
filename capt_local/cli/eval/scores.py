"""What `score` tells: a line for each item as it is done, and the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from capt_local.cli.exits import ExitCode
from capt_local.decoding.options import Method
from capt_local.evaluate.likelihood import Likelihood, Total, bits_per_byte
from capt_local.evaluate.reading.given import Given
from capt_local.report.json import JsonObject, dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table


class Scores:
    """Collects and tells what is found.

    Args:
        screen: where it is told.
        method: that gave the probabilities.
        items: what is scored, in this order.
        per_item: whether each item is told on a line of its own.
        json: whether lines and sum are JSON.

    Attributes:
        done: what was found so far.
    """

    def __init__(
        self,
        screen: Screen,
        method: Method,
        items: Sequence[Given],
        *,
        per_item: bool,
        json: bool,
    ) -> None:
        """Nothing is done yet."""
        self.done: list[Likelihood] = []
        self._screen = screen
        self._method = method
        self._items = items
        self._per_item = per_item
        self._json = json

    def add(self, one: Likelihood) -> None:
        """Takes in one item, and tells it if that is wanted."""
        line = self._items[len(self.done)].line
        self.done.append(one)
        if one.error:  # by its line: an id may be a patient's
            self._screen.note(f"line {line}: {one.error}")
        if self._per_item:
            self._screen.line(dumps(self._object(one)) if self._json else _line(one))
        self._screen.progress("scoring", len(self.done) / len(self._items))

    def lines(self) -> str:
        """JSON Lines of all items so far."""
        return "".join(dumps(self._object(one)) + "\n" for one in self.done)

    def tell(self) -> ExitCode:
        """Tells the sum of what is done, and what is wrong with it."""
        total = Total.of(self.done)
        interrupted = len(self.done) < len(self._items)
        if total.again:
            self._screen.note(
                f"{total.again} times the context was full and a text went on afresh."
            )
        if not math.isfinite(total.nats):
            never = sum(not math.isfinite(one.nats) for one in self.done)
            self._screen.note(
                f"{never} items have probability 0 under this method, so there is no finite sum."
            )
        if self._json:
            self._screen.line(dumps(self._sum(total, interrupted=interrupted)))
        else:
            self._screen.show(_table(total, self._method))
        if total.failed:
            self._screen.note(f"{total.failed} of {len(self.done)} items could not be scored.")
        if interrupted:
            self._screen.error(
                f"interrupted after {len(self.done)} of {len(self._items)} items; the figures are "
                "of these."
            )
            return ExitCode.INTERRUPTED
        return ExitCode.FAILED_RECORDS if total.failed else ExitCode.OK

    def _object(self, one: Likelihood) -> JsonObject:
        """One item, with the keys that it has something for."""
        if one.error:
            return {"id": one.id, "method": str(self._method), "error": one.error}
        result: JsonObject = {"id": one.id, **self._figures(one.nats, one.size, one.tokens)}
        if one.greedy is not None:
            result["greedy"] = one.greedy
        if one.chosen is not None:
            result["chosen"] = one.chosen
        if one.logps:
            result["logps"] = list(one.logps)
        if one.correct is not None:
            result["correct"] = one.correct
        return result

    def _sum(self, total: Total, *, interrupted: bool) -> JsonObject:
        result = self._figures(total.nats, total.size, total.tokens)
        if total.judged:
            result |= {"accuracy": total.accuracy, "questions": total.judged}
        if total.failed:
            result["failed"] = total.failed
        if interrupted:
            result["interrupted"] = True
        return result

    def _figures(self, nats: float, size: int, tokens: int) -> JsonObject:
        return {
            "method": str(self._method),
            "bits_per_byte": bits_per_byte(nats, size),
            "bytes": size,
            "tokens": tokens,
            "nats": nats,
        }


def _line(one: Likelihood) -> str:
    if one.error:
        return f"{one.id}: not scored"
    parts = []
    if one.bits_per_byte is not None:
        parts.append(f"{one.bits_per_byte:.4f} bits per byte, {one.size} bytes")
    if one.chosen is not None:
        verdict = {True: ", right", False: ", wrong", None: ""}[one.correct]
        parts.append(f"choice {one.chosen}{verdict}")
    return f"{one.id}: {'; '.join(parts)}"


def _table(total: Total, method: Method) -> Table:
    bits = total.bits_per_byte
    cells = {
        "method": str(method),
        "bits per byte": "-" if bits is None else f"{bits:.4f}",
        "bytes": f"{total.size}",
        "tokens": f"{total.tokens}",
        "nats": f"{total.nats:.1f}",
    }
    if total.accuracy is not None:
        cells["accuracy"] = f"{total.accuracy:.3f} of {total.judged}"
    right = tuple(range(1, len(cells)))
    return Table("", (tuple(cells.values()),), tuple(cells), right=right)
