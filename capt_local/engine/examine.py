"""A first look at files that nobody vouches for, in a process of its own.

llama.cpp reads a file with code in C++; what a hostile or damaged one does there ends that process
and not this one. There, every weight is looked at for NaN and infinities, a text is split into
tokens and some of them are computed. That process writes no file, has no network where Linux lets
it give that up, may take no more memory than the header explains, and no more time than a slow
disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from capt_local.engine.adapters import check_adapter
from capt_local.engine.closing import Closing
from capt_local.engine.examining import PASSED, REFUSED, SHORT
from capt_local.engine.header import read_header
from capt_local.errors import MemoryShortage, ModelError

Waiting = Callable[[], None]

_SECONDS = 60.0  # for a file of no size
_SLOWEST = 10 << 20  # bytes in a second
_PATIENCE = 5.0  # seconds for a process to end that has closed its line
_EACH = 0.1  # seconds between two calls of `waiting`
_LONGEST = 1000  # characters of what it says
# What the libraries need to be found, and no layer on a GPU: its driver takes memory and seconds.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "CUDA_PATH")
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}

# -I: neither the folder that this is run in nor the environment says what is imported.
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from capt_local.engine.examining import main; main()"
)


_TRIAL = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from capt_local.engine.confined import confine; sys.exit(not confine())"
)


def calls_are_forbidden() -> bool:
    """Whether the kernel forbids the other process what reaches beyond it; asks one that ends."""
    try:
        done = subprocess.run(
            _command(_TRIAL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=_SECONDS,
        )
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _command(program: str) -> list[str]:
    return [sys.executable, "-I", "-c", program, str(Path(__file__).resolve().parents[2])]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | _NO_GPU


class Examiner(Closing):
    """The other process; it is started for the first file, and again when one has ended it.

    Attributes:
        ended: how many files have ended the process.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._process: _Process | None = None
        self.ended = 0

    def look(
        self, path: Path, adapters: Sequence[Path] = (), waiting: Waiting | None = None
    ) -> None:
        """Loads a model, and adapters onto it.

        Args:
            path: of the model.
            adapters: of LoRA adapters; each is put on the model by itself.
            waiting: called several times a second while it works; may raise to stop.

        Raises:
            ModelError: a file is damaged, or the process did not end as it should.
            MemoryShortage: the model does not fit into memory.
        """
        header = read_header(path)  # what is plainly broken never reaches llama.cpp
        for adapter in adapters:
            check_adapter(adapter, header, path.name)
        if self._process is None:
            self._process = _Process()
        asked = {"model": path.resolve(), "adapters": [one.resolve() for one in adapters]}
        limit = _SECONDS + header.file_size / _SLOWEST
        try:
            said = self._process.ask(json.dumps(asked, default=str), limit, waiting)
        except _Ended as end:
            self.close()
            self.ended += 1
            raise ModelError(
                f"{path.name} {end}, so it is not used. Get the file again from its source."
            ) from None
        except BaseException:
            self.close()
            raise
        if said != PASSED:
            raise _refusal(said, path.name)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def _refusal(said: str, name: str) -> ModelError | MemoryShortage:
    """What the process said, which a hostile file may have put into its mouth."""
    shown = "".join(char for char in said[:_LONGEST] if char.isprintable())
    for mark, kind in ((REFUSED, ModelError), (SHORT, MemoryShortage)):
        if shown.startswith(mark):
            return kind(shown.removeprefix(mark))
    return ModelError(f"{name} cannot be used: the process that looked at it says nothing clear.")


class _Ended(Exception):
    """The process is no more; the text says how that came."""


class _Process:
    """One process, and a thread that listens to it."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                _command(_PROGRAM),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # without the user's terminal, which it could type into
            )
        except OSError as error:
            reason = error.strerror or "unknown"
            raise ModelError(
                f"The process that looks at model files cannot be started: {reason}."
            ) from None
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, line: str, limit: float, waiting: Waiting | None) -> str:
        """What it answers.

        Raises:
            _Ended: nothing, within so many seconds, or it ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._end() from None
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if waiting is not None:
                waiting()
            try:
                said = self._said.get(timeout=_EACH)
            except queue.Empty:
                continue
            if not said.endswith(b"\n"):
                raise self._end()
            return said.decode("utf-8", "replace").strip()
        raise _Ended(f"kept the process that looked at it busy for more than {limit:.0f} s")

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what it was not told any more
            self._process.stdin.close()

    def _end(self) -> _Ended:
        try:
            code: int | str = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = "unknown"
        return _Ended(f"ended the process that looked at it (code {code})")

    def _listen(self) -> None:
        with self._process.stdout as stream:  # type: ignore[union-attr]
            said = b"\n"
            while said.endswith(b"\n"):
                said = stream.readline(4 * _LONGEST)
                self._said.put(said)
