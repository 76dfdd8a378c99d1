"""A terminal that a program runs in: pexpect holds the other end, pyte is the screen."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

PROMPT = ">>>"
ENDED = b"\x1b[?2004l"  # prompt_toolkit switches bracketed paste off when a line is sent
_PASTE = ("\x1b[200~", "\x1b[201~")


class Terminal:
    """A command in a terminal; `raw` is what it wrote, `screen` what is seen or scrolled away."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        size: tuple[int, int] = (24, 80),
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        cwd: Path | None = None,
        command: Sequence[str] = (sys.executable, "-m", "capt_local"),
        timeout: float = 30.0,
    ) -> None:
        more = {"TERM": "xterm", **(environment or {})}
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.timeout = timeout
        self.process = pexpect.spawn(
            command[0],
            [*command[1:], *arguments],
            dimensions=size,
            env={**inherited, **more},
            preexec_fn=before,
            cwd=None if cwd is None else str(cwd),
        )
        self.process.delaybeforesend = None
        self.raw = b""
        self.screen = pyte.HistoryScreen(size[1], size[0], history=100_000)
        self._stream = pyte.ByteStream(self.screen)

    def read(self, seconds: float = 0.05) -> None:
        """Takes in what was written within so long."""
        try:
            chunk = self.process.read_nonblocking(65536, seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return
        self.raw += chunk
        self._stream.feed(chunk)

    def wait(self, there: Callable[[], bool], timeout: float | None = None) -> None:
        """Waits until something is seen."""
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not there():
            assert time.monotonic() < until, "\n".join(self.lines()[-40:])
            assert self.process.isalive() or self.pending(), "\n".join(self.lines()[-40:])
            self.read()

    def pending(self) -> bool:
        """Whether an ended command had more to say."""
        before = len(self.raw)
        self.read()
        return len(self.raw) > before

    def lines(self) -> list[str]:
        """All lines, also those that scrolled away."""
        columns = range(self.screen.columns)
        top = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        return [line.rstrip() for line in [*top, *self.screen.display]]

    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines())

    def at_cursor(self) -> str:
        """The line in which the cursor stands."""
        # When a window shrinks, pyte leaves the cursor below it until it is moved.
        row = min(self.screen.cursor.y, self.screen.lines - 1)
        return self.screen.display[row].rstrip()

    def ready(self, timeout: float | None = None) -> None:
        """Waits for an empty prompt."""
        self.wait(lambda: self.at_cursor() == PROMPT, timeout)

    def send(self, keys: str | bytes) -> None:
        """Presses keys."""
        self.process.send(keys)

    def paste(self, text: str | bytes) -> None:
        """Pastes as a terminal does: between two marks, line ends as carriage returns."""
        data = text.encode() if isinstance(text, str) else text
        first, last = (mark.encode() for mark in _PASTE)
        self.process.send(first + data.replace(b"\n", b"\r") + last)

    def say(self, line: str = "", *, timeout: float | None = None) -> str:
        """Sends a line and waits for the next, empty prompt; what was shown meanwhile, in lines."""
        sent, seen = self.raw.count(ENDED), len(self.raw)
        self.send(line + "\r")
        self.wait(lambda: self.raw.count(ENDED) > sent and self.at_cursor() == PROMPT, timeout)
        return plain(self.raw[seen:])

    def turns(self) -> int:
        """How many turns a chat has, as /context lists them."""
        _, _, listed = self.say("/context").partition("Turns")
        return len(re.findall(r"^ +\d+ ", listed, re.M))

    def end(self, timeout: float | None = None) -> int:
        """Waits for the end; the exit code, or minus the signal that ended it."""
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while self.process.isalive():
            assert time.monotonic() < until, "the command does not end"
            self.read()
        while self.pending():
            pass
        self.process.close()
        status, number = self.process.exitstatus, self.process.signalstatus
        return -int(number or 0) if status is None else int(status)

    def hang_up(self) -> int:
        """Closes the terminal as a window is closed; the exit code of what ran in it."""
        process = self.process
        process.ptyproc.fileobj.close()
        process.ptyproc.closed = process.closed = True
        process.child_fd = process.ptyproc.fd = -1
        until = time.monotonic() + self.timeout
        while (ended := os.waitpid(process.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < until, "the session goes on without a terminal"
            time.sleep(0.05)
        process.terminated = process.ptyproc.terminated = True
        return os.waitstatus_to_exitcode(ended[1])

    def close(self) -> None:
        """Ends the command if it still runs."""
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
        self.process.close(force=True)


_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def plain(written: bytes) -> str:
    """What was written, without the sequences that move the cursor and the like."""
    return _SEQUENCE.sub(b"", written).decode("utf-8", "replace")
