"""A run that is killed again and again: python -m tests.batch.killed OUTPUT RECORDS KILLS.

Each life is a process of its own. It acknowledges each record through a pipe when `append` has
returned, and is killed (SIGKILL) at a random moment of a fixed seed; then every acknowledged record
must be in the file. The last life may finish. Prints how many kills there were, and how many of
them came when the journal was open, not while it was being opened.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from capt_local.batch.journal import OutputJournal
from tests.batch.runs import fingerprint, ids, in_file, line

OPENED = b"opened\n"


def life(output: Path, records: int, pipe: int) -> None:
    of = fingerprint()
    with OutputJournal.open(output, of) as journal:
        os.write(pipe, OPENED)
        for id in ids(records):
            if id not in journal.done:
                journal.append(line(id, of, time.time()))
                os.write(pipe, f"{id}\n".encode())


def born(output: Path, records: int) -> tuple[int, int]:
    """Starts a life; returns its process and the pipe of its acknowledgements."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid:
        os.close(said)
        return pid, heard
    status = 1
    try:
        os.close(heard)
        life(output, records, said)
        status = 0
    finally:
        os._exit(status)


def acknowledged(pipe: int) -> list[str]:
    """What a life said until its end."""
    with open(pipe, "rb") as stream:
        said = stream.read().split(b"\n")[:-1]
    return [each.decode() for each in said if each != OPENED.strip()]


def main(output: Path, records: int, kills: int) -> None:
    moments = random.Random(20260204)
    done = inside = 0
    safe: set[str] = set()
    opening, writing = measured(output.with_name("measured"))
    while done < kills:
        pid, pipe = born(output, records)
        if moments.random() < 0.25:  # while it reads what is there
            time.sleep(moments.uniform(0, opening))
        elif os.read(pipe, len(OPENED)) == OPENED:
            inside += 1
            time.sleep(moments.uniform(0, 2.5 * writing * records / kills))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        safe.update(acknowledged(pipe))
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a life failed by itself"
        done += os.WIFSIGNALED(status)
        kept = in_file(output) if output.exists() else []
        assert safe <= set(kept), "an acknowledged record is lost"
        if os.WEXITSTATUS(status) == 0 and not os.WIFSIGNALED(status):
            check(output, records)  # finished: the rest of the kills fall on a new run
            safe.clear()
            clear(output)
    pid, pipe = born(output, records)
    assert os.waitpid(pid, 0)[1] == 0
    check(output, records)
    sys.stdout.write(f"{done} {inside}\n")


def measured(output: Path) -> tuple[float, float]:
    """Seconds that opening and one record take here."""
    started = time.perf_counter()
    pid, pipe = born(output, 20)
    os.read(pipe, len(OPENED))
    opened = time.perf_counter()
    os.waitpid(pid, 0)
    os.close(pipe)
    clear(output)
    return opened - started, (time.perf_counter() - opened) / 20


def clear(output: Path) -> None:
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()


def check(output: Path, records: int) -> None:
    assert in_file(output) == ids(records), "not each record once, in the order of the run"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
