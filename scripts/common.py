"""What several scripts share: lines of JSON, prompts of items, intervals, writing GGUF files."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter


def records(
    path: Path, limit: int | None = None, *, missing_ok: bool = False
) -> list[dict[str, Any]]:
    """The first lines of a JSON Lines file, plain or xz; with `missing_ok` none without a file."""
    if missing_ok and not path.exists():
        return []
    opened: Any = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, limit)]


def prompt_of(item: dict[str, Any]) -> str:
    """What a model is asked for an item of an evaluation task."""
    return f"{item['instruction']}\n\n{item['input']}"


def mean_interval(values: Iterable[float], draws: int, seed: int) -> tuple[float, float, float]:
    """The mean of values with the ends of its 95 % bootstrap interval (BCa)."""
    import numpy as np
    from scipy.stats import bootstrap

    array = np.array(list(values))
    mean = low = high = float(array.mean())
    if array.std() > 0:
        found = bootstrap((array,), np.mean, n_resamples=draws, rng=seed).confidence_interval
        low, high = float(found.low), float(found.high)
    return mean, low, high


def write_gguf(writer: GGUFWriter) -> None:
    """Writes and closes a file whose pairs and tensors have been added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
