"""Puts damaged model files through their whole way, and counts what becomes of them.

    python -m scripts.fuzz_models               # 1,000 files
    python -m scripts.fuzz_models --first 5000 --count 200

Each file is made from a tiny valid model by a seed and its number, goes through the check of its
header, then through the process that looks at files first, then is loaded by this process. It ends
with an error of its own if this process dies, if an error has no name, or if a file is written.
Needs the `test` extra.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import typer

from tests.fuzz.mutated import SEED, Outcome, outcomes


def main(first: int = 0, count: int = 1000, show: bool = False) -> None:
    """Puts COUNT damaged files from the number FIRST on through their whole way."""
    started, found = time.perf_counter(), Counter[Outcome]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "valid").mkdir()
        for number, became, said in outcomes(range(first, first + count), folder):
            found[became] += 1
            if show:
                print(f"{number}\t{became.name}\t{said}", flush=True)
            if became is not Outcome.LOADED and "damaged.gguf" not in said:
                raise SystemExit(f"the error of file {number} does not name it: {said}")
    print(f"seed {SEED}, {found.total():,} files, {time.perf_counter() - started:.0f} s")
    for became in Outcome:
        print(f"{found[became]:>6,}  {became}")


if __name__ == "__main__":
    typer.run(main)
