"""Puts damaged model files through their whole way, and counts what becomes of them.

    python -m scripts.fuzz_models               # 1,000 files
    python -m scripts.fuzz_models --first 5000 --count 200

Each file is made from a tiny valid model by a seed and its number, goes through the check of its
header, then through the process that looks at files first, then is loaded by this process. It ends
with an error of its own if this process dies, if an error has no name, or if a file is written.
Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.mutated import SEED, Outcome, outcomes


def main() -> int:
    """Runs."""
    parser = argparse.ArgumentParser(description="Damaged model files on their whole way.")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--count", type=int, default=1000, help="how many")
    parser.add_argument("--show", action="store_true", help="tells of each file")
    asked = parser.parse_args()
    started, found = time.perf_counter(), Counter[Outcome]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "valid").mkdir()
        for number, became, said in outcomes(range(asked.first, asked.first + asked.count), folder):
            found[became] += 1
            if asked.show:
                print(f"{number}\t{became.name}\t{said}", flush=True)
            if became is not Outcome.LOADED and "damaged.gguf" not in said:
                print(f"the error of file {number} does not name it: {said}")
                return 1
    print(f"seed {SEED}, {found.total():,} files, {time.perf_counter() - started:.0f} s")
    for became in Outcome:
        print(f"{found[became]:>6,}  {became}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
