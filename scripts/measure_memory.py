"""The memory of a whole run beside what `capt-local doctor` estimates of it.

    python -m scripts.measure_memory [--contexts 256,1024] [--share 0.7] [--most N] [MODEL FLAGS]

For each context a process of its own answers a prompt of invented text with the default method, and
its largest resident size is read from the system. What is behind the options goes to both
commands: `-m BUNDLE`, or `--target`, `--expert` and `--base`. Only for CPU builds: what a GPU
holds is not in the resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SENTENCE = "The patient came in with a cough and a fever for three days. "
TOKENS_OF_A_SENTENCE = 20  # at most, in the vocabulary of the demo


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each context."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", default="256,1024")
    parser.add_argument("--share", type=float, default=0.7, help="of the context, in the prompt")
    parser.add_argument("--most", type=int, default=1 << 20, help="tokens of the prompt at most")
    own, models = parser.parse_known_args(arguments)
    for context in map(int, own.contexts.split(",")):
        tokens = min(int(context * own.share), own.most)
        estimated = estimate(models, context)
        measured = peak(models, context, tokens)
        off = 100 * (estimated / measured - 1)
        print(
            f"context {context}: estimated {estimated >> 20:,} MiB, measured {measured >> 20:,} "
            f"MiB, {off:+.1f} %",
            flush=True,
        )


def estimate(models: Sequence[str], context: int) -> int:
    """Bytes that doctor says are needed."""
    command = [sys.executable, "-m", "capt_local", "doctor", "--json", "-c", str(context), *models]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return int(json.loads(said)["memory of the bundle"]["needed bytes"])


def peak(models: Sequence[str], context: int, tokens: int) -> int:
    """The largest resident size in bytes of a process that answers a prompt."""
    with tempfile.TemporaryDirectory() as folder:
        prompt = Path(folder) / "prompt.txt"
        prompt.write_text(SENTENCE * max(1, tokens // TOKENS_OF_A_SENTENCE), "utf-8")
        command = [sys.executable, "-m", "capt_local", "generate", "--raw", "-f", str(prompt)]
        command += ["-n", "8", "-c", str(context), *models]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"capt-local generate ended with {process.returncode}.")
    return _largest(used)


def _largest(used: resource.struct_rusage) -> int:
    """Linux counts in KiB, macOS in bytes."""
    return used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss << 10


if __name__ == "__main__":
    main()
