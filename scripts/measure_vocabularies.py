"""What the table between two vocabularies costs, for every ordered pair of real vocabularies.

Those of llama.cpp's tests (scripts/real_vocabularies.py) and of the GGUF files that are named: a
row for each target with the seconds of its events, then the seconds of the projection's table for
each proxy, the largest table in MB, and the most pieces of a proxy that the target has no token
for. Seconds are of the processor, so that a busy machine does not count. What was looked up for one
proxy of a target is known for the next.

    python -m scripts.measure_vocabularies smollm2.gguf gemma.gguf models/demo/expert.gguf
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer

from capt_local.alignment import NO_EVENT, Projection, TargetEvents
from capt_local.errors import ModelError
from capt_local.llama.weights import Weights
from capt_local.tokenization import TextTokenizer
from scripts.real_vocabularies import fetch

Made = TypeVar("Made")


def tokenizers(paths: list[Path]) -> Iterator[tuple[str, TextTokenizer]]:
    """Name and tokenizer of each file; those that capt-local refuses are left out, with a line."""
    for path in [*sorted(fetch().glob("*.gguf")), *paths]:
        try:
            weights = Weights(path, vocabulary_only=True)
        except ModelError as error:
            print(f"left out: {error}")
            continue
        yield (
            path.stem.removeprefix("ggml-vocab-"),
            TextTokenizer(weights.vocabulary, weights.tokenize),
        )


def timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """What `make` returns, and the seconds of the processor that it took."""
    started = time.process_time()
    made = make()
    return made, time.process_time() - started


def unspellable(tokenizer: TextTokenizer, events: TargetEvents) -> int:
    """Pieces of a proxy that begin with a byte the target has no token for."""
    vocabulary = tokenizer.vocabulary
    text = np.flatnonzero(vocabulary.is_text).tolist()
    return sum(events.first(vocabulary.piece(token)) == NO_EVENT for token in text)


def main(
    models: Annotated[list[Path] | None, typer.Argument(help="further GGUF files")] = None,
    target: Annotated[list[str] | None, typer.Option(help="these targets alone")] = None,
) -> None:
    """Prints a table in Markdown: a row for each target, a column for each proxy."""
    known = dict(tokenizers(models or []))
    print("| target | tokens | events |", " | ".join(known), "| MB | no token |", flush=True)
    print("|---" * (len(known) + 5) + "|")
    for name, tokenizer in known.items():
        if target and name not in target:
            continue
        events, seconds = timed(lambda tokenizer=tokenizer: TargetEvents(tokenizer))
        cells, largest, lost = [], 0.0, 0
        for proxy in known.values():
            vocabulary = proxy.vocabulary
            table, spent = timed(
                lambda vocabulary=vocabulary, events=events: Projection(vocabulary, events)
            )
            cells.append(f"{spent:.1f}")
            largest, lost = (
                max(largest, table._plain.size * 4 / 1e6),
                max(lost, unspellable(proxy, events)),
            )
        size = f"{len(tokenizer.vocabulary):,} | {seconds:.1f}"
        print(f"| {name} | {size} |", " | ".join(cells), f"| {largest:.0f} | {lost} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
