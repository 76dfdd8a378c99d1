"""Tokens per second with the default number of threads and with fixed ones, idle and busy.

    python scripts/measure_threads.py models/demo/expert.gguf

Each way runs in a process of its own, in turns, so that what else happens meets all of them. Busy
means beside four processes that never rest. The last two lines are what matters: the default
beside busy processes over one thread there, and the idle default over the best fixed number.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BURNERS, ROUNDS, DEFAULT = 4, 3, 0
_FIRST_TOKENS, _LAST_POSITION = 64, 900


def generate(model: Path, threads: int, seconds: float) -> float:
    """Tokens per second of single steps behind some dozen tokens."""
    sys.path.insert(0, str(ROOT))
    from capt_local.llama.model import LlamaModel
    from capt_local.llama.options import LoadOptions

    options = LoadOptions(threads=threads or None, context=1024, max_rows=1)
    with LlamaModel.open(model, options) as opened:
        opened.extend(list(range(100, 100 + _FIRST_TOKENS)))
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            if opened.position > _LAST_POSITION:
                opened.rewind(_FIRST_TOKENS)
            opened.extend([200 + count % 100])
            count += 1
    return count / elapsed


def compare(model: Path, ways: list[int], seconds: float) -> dict[int, float]:
    """The median speed of each number of threads, measured in turns."""
    found = defaultdict(list)
    for _ in range(ROUNDS):
        for threads in ways:
            command = [sys.executable, __file__, str(model), "--seconds", str(seconds)]
            done = subprocess.run(
                [*command, "--one", str(threads)], capture_output=True, text=True, check=True
            )
            found[threads].append(float(done.stdout))
    return {threads: statistics.median(each) for threads, each in found.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one is not None:
        print(generate(flags.model, flags.one, flags.seconds))
        return
    sys.path.insert(0, str(ROOT))
    from capt_local.llama.threads import physical_cores

    fixed = list(range(1, physical_cores() + 1))
    idle = compare(flags.model, [DEFAULT, *fixed], flags.seconds)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BURNERS)]
    try:
        busy = compare(flags.model, [DEFAULT, 1, fixed[-1]], flags.seconds)
    finally:
        for one in burners:
            one.kill()
            one.wait()
    for name, found in (("idle", idle), (f"beside {BURNERS} busy processes", busy)):
        for threads, speed in found.items():
            print(f"{name}, {f'-t {threads}' if threads else 'default'}: {speed:.1f} tokens/s")
    print(f"busy: default / -t 1 = {busy[DEFAULT] / busy[1]:.2f}")
    print(f"idle: default / best -t = {idle[DEFAULT] / max(idle[one] for one in fixed):.2f}")


if __name__ == "__main__":
    main()
