"""Milliseconds of a batch of several tokens behind some text, with and without flash attention.

    python -m scripts.measure_batches MODEL.gguf ... --threads 2 --behind 0 700 --sizes 1 4 8

Every token asks for its row of logits, as a draft does. The median of ten; the kinds are measured
in turn, so that a machine that drifts slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from capt_local import LoadOptions
from capt_local.engine.llama import LlamaModel

_TIMES = 10


def milliseconds(model: LlamaModel, behind: int, size: int) -> float:
    """One batch; the model is left with `behind` tokens."""
    vocabulary = len(model.vocabulary)
    tokens = [(7 * at + 300) % vocabulary for at in range(behind + size)]
    model.rewind(min(model.position, behind))
    if model.position < behind:
        model.extend(tokens[model.position : behind], 0)
    started = time.perf_counter()
    model.extend(tokens[behind:], size)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Prints a line for each model, text and kind of attention."""
    parser = argparse.ArgumentParser(description="What batches of several tokens cost.")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--behind", type=int, nargs="+", default=[0, 700])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8])
    asked = parser.parse_args()
    context, rows = max(asked.behind) + max(asked.sizes), max(asked.sizes)
    for path in asked.models:
        kinds = {
            flash: LlamaModel.open(
                path,
                LoadOptions(
                    threads=asked.threads, context=context, max_rows=rows, flash_attention=flash
                ),
            )
            for flash in ("off", "on")
        }
        for behind in sorted(asked.behind):
            for size in asked.sizes:
                times: dict[str, list[float]] = {flash: [] for flash in kinds}
                for _ in range(_TIMES + 1):
                    for flash, model in kinds.items():
                        times[flash].append(milliseconds(model, behind, size))
                told = ", ".join(
                    f"flash attention {flash} {statistics.median(taken[1:]):.1f}"
                    for flash, taken in times.items()
                )
                print(f"{path.name}: {size} behind {behind}: {told}", flush=True)
        for model in kinds.values():
            model.close()


if __name__ == "__main__":
    main()
