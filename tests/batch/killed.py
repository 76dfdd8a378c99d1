"""A run that is killed again and again: python -m tests.batch.killed OUTPUT RECORDS KILLS.

Each life is a process of its own. It acknowledges each record through a pipe when `append` has
returned, and is killed (SIGKILL) at a random moment of a fixed seed; then every acknowledged record
must be in the file. Prints how many kills there were, and how many of them came when the journal
was open, not while it was being opened.
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
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ours)
        return pid, theirs
    status = 1
    try:
        os.close(theirs)
        life(output, records, ours)
        status = 0
    finally:
        os._exit(status)


def main(output: Path, records: int, kills: int) -> None:
    moments = random.Random(20260204)
    done = inside = 0
    safe: set[str] = set()
    while done < kills:
        pid, pipe = born(output, records)
        if moments.random() < 0.25:  # while it reads what is there
            time.sleep(moments.uniform(0, 0.01))
        elif os.read(pipe, len(OPENED)) == OPENED:
            inside += 1
            time.sleep(moments.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with open(pipe, "rb") as stream:
            said = stream.read().removeprefix(OPENED).split(b"\n")[:-1]
        safe.update(each.decode() for each in said)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a life failed by itself"
        done += os.WIFSIGNALED(status)
        there = in_file(output) if output.exists() else []
        assert safe <= set(there), "an acknowledged record is lost"
        if os.WIFEXITED(status):  # finished: the rest of the kills fall on a new run
            assert there == ids(records), "not each record once, in the order of the run"
            safe.clear()
            for path in output.parent.glob(f"{output.name}*"):
                path.unlink()
    pid, _ = born(output, records)
    assert os.waitpid(pid, 0)[1] == 0
    assert in_file(output) == ids(records)
    sys.stdout.write(f"{done} {inside}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
