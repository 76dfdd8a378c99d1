"""How long the check of a batch input takes, and how much memory.

    python -m scripts.measure_batch_input [--lines N] [--bytes N] [--format jsonl|csv] [--template]

Makes an input of invented text in a temporary folder, checks it, and reads a thousand records
again. Prints seconds (of the clock and of the processor) and the largest size of the process.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from capt_local.batch.asking import Asking
from capt_local.batch.checking import check_input
from capt_local.batch.inputs import InputFormat
from capt_local.batch.template import RecordTemplate

_SENTENCE = "the patient denies chest pain and reports a mild cough since three days é"
_TEMPLATE = b"Summarise this note in one sentence.\n\n{{ prompt }}\n"
_AGAIN = 1000


def main(arguments: list[str] | None = None) -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description="Measures the check of a batch input.")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=500, help="of each text, about")
    parser.add_argument("--format", type=InputFormat, default=InputFormat.JSONL)
    parser.add_argument("--template", action="store_true", help="fill a template in for each")
    asked = parser.parse_args(arguments)
    asking = Asking(template=RecordTemplate(_TEMPLATE)) if asked.template else Asking()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"in.{asked.format}"
        write(path, asked.format, asked.lines, asked.bytes)
        print(measured(path, asking))


def write(path: Path, form: InputFormat, count: int, size: int) -> None:
    """An input of so many records with a text of about so many bytes each."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = texts(count, size)
        if form is InputFormat.CSV:
            writer = csv.writer(stream)
            writer.writerow(("id", "prompt"))
            writer.writerows(rows)
        else:
            stream.writelines(f"{json.dumps({'id': id, 'prompt': t})}\n" for id, t in rows)


def texts(count: int, size: int) -> Iterator[tuple[str, str]]:
    """Ids and texts, the same each time."""
    draw, words = random.Random(0), _SENTENCE.split()
    per_text = max(1, size * len(words) // len(_SENTENCE))
    for number in range(count):
        text = " ".join(draw.choices(words, k=per_text))
        yield f"note-{number:07}", text


def measured(path: Path, asking: Asking) -> str:
    """What the check of a file takes, as a line."""
    size = path.stat().st_size / 2**20
    before, used = time.perf_counter(), time.process_time()
    source = check_input(path, asking=asking)
    seconds, used = time.perf_counter() - before, time.process_time() - used
    before = time.perf_counter()
    places = range(0, len(source), max(1, len(source) // _AGAIN))
    for place in places:
        source.record(place)
    again = (time.perf_counter() - before) / len(places)
    return (
        f"{len(source)} records, {size:.0f} MiB: checked in {seconds:.1f} s ({used:.1f} s of the "
        f"processor), at most {peak() / 2**20:.0f} MiB; read again in {again * 1e6:.0f} us each"
    )


def peak() -> int:
    """The largest size that this process had, in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


if __name__ == "__main__":
    main()
