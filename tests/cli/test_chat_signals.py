"""How a chat ends, and what interrupts it: signals, a closed terminal, time, the end of a pipe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.cli.terminal import ENDED, Terminal, plain

QUESTION = "What are the symptoms of asthma?"
CANARY = "zyzzyva"
# At a temperature at which the demo models do not find an end.
LONG = ("-t", "1", "-n", "900", "-c", "4096", "--temp", "9", "--plausibility", "0")
NOTE = f"{CANARY} fever and a cough " * 300


def started(*flags: str) -> Terminal:
    terminal = Terminal(["chat", *LONG, *flags])
    terminal.ready()
    return terminal


def answering(terminal: Terminal) -> None:
    """Asks, and waits until the answer has begun."""
    sent = terminal.raw.count(ENDED)
    terminal.send(f"{QUESTION}\r")

    def begun() -> bool:
        # The mode for pasting is the last thing that is switched before the answer, and the
        # line that tells of the reading, where there was time for it, is wiped.
        written = terminal.raw.rpartition(ENDED)[2].partition(b"\x1b[?2004h")[2]
        shown = plain(written.rpartition(b"  \r")[2]).strip()
        is_answer = len(shown) > 3 and "reading," not in shown
        return terminal.raw.count(ENDED) > sent and is_answer

    terminal.wait(begun)


def reading(terminal: Terminal) -> None:
    """Asks about a long note, and waits until the models read it."""
    terminal.paste(NOTE)
    terminal.wait(lambda: "cough" in terminal.at_cursor())
    sent = terminal.raw.count(ENDED)
    terminal.send("\r")
    quiet = b"\x1b[?2004h"
    terminal.wait(
        lambda: terminal.raw.count(ENDED) > sent and quiet in terminal.raw.rpartition(ENDED)[2]
    )


def saved(terminal: Terminal, path: Path) -> list[dict[str, object]]:
    """The turns of the conversation, as a file has them."""
    terminal.say(f"/save {path}")
    assert path.stat().st_mode & 0o777 == 0o600
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["type"] == "turn"]


def echoes(terminal: Terminal) -> bool:
    return bool(termios.tcgetattr(terminal.process.child_fd)[3] & termios.ECHO)


def test_ctrl_c_keeps_the_part_and_the_session_and_the_second_one_leaves(tmp_path: Path) -> None:
    terminal = started()
    answering(terminal)
    assert not echoes(terminal)
    begun = time.monotonic()
    terminal.send("\x03")
    terminal.ready()
    assert time.monotonic() - begun < 3  # a second on a machine that does nothing else
    assert "interrupted" in terminal.text()
    (turn,) = saved(terminal, tmp_path / "t.jsonl")
    assert turn["answer"]["choices"][0]["finish_reason"] == "interrupted"
    terminal.say("/set max-tokens 3")
    terminal.say("Go on.")
    assert terminal.turns() == 2
    terminal.say("/set max-tokens 900")
    answering(terminal)
    terminal.send("\x03")
    terminal.ready()
    terminal.send("\x03")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text()


def test_ctrl_c_while_the_models_read_offers_the_text_again() -> None:
    terminal = started()
    answering(terminal)
    terminal.send("\x03")
    terminal.ready()
    reading(terminal)
    begun = time.monotonic()
    terminal.send("\x03")
    terminal.wait(lambda: b"Stopped before the answer began" in terminal.raw)
    assert time.monotonic() - begun < 3
    terminal.wait(lambda: "cough" in terminal.at_cursor())
    terminal.send("\x15")
    terminal.ready()
    shown = terminal.say("/context")
    counts = [int(line.split("/")[0].split()[-1]) for line in shown.splitlines() if "4096" in line]
    assert len(counts) == 3 and max(counts) < 500
    assert terminal.turns() == 1
    reading(terminal)
    terminal.send("\x03")
    terminal.wait(lambda: terminal.raw.count(b"Stopped before the answer began") == 2)
    terminal.wait(lambda: "cough" in terminal.at_cursor())
    terminal.send("\x03")
    assert terminal.end() == 130


@pytest.mark.parametrize("busy", [False, True], ids=["at the prompt", "in an answer"])
def test_a_signal_ends_the_session_and_restores_the_terminal(busy: bool) -> None:
    terminal = started()
    if busy:
        answering(terminal)
    else:
        terminal.send("half a question")
        terminal.wait(lambda: "question" in terminal.at_cursor())
    terminal.process.kill(signal.SIGTERM)
    assert terminal.end() == 143
    assert "Traceback" not in terminal.text() and "error" not in terminal.text()
    assert terminal.raw.count(b"\x1b[?2004h") == terminal.raw.count(b"\x1b[?2004l")


def test_a_closed_terminal_ends_the_session(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    shell = f'exec "$@" 2>{errors}'
    command = ("sh", "-c", shell, "sh", sys.executable, "-m", "capt_local")
    terminal = Terminal(["chat", *LONG], command=command)
    terminal.ready()
    answering(terminal)
    assert terminal.hang_up() == 128 + signal.SIGHUP
    assert "Traceback" not in errors.read_text() and "error" not in errors.read_text()


def test_an_idle_session_forgets_and_says_so(tmp_path: Path) -> None:
    terminal = started("--idle-timeout", "0.05")
    terminal.say("/set max-tokens 4")
    terminal.say(f"{QUESTION} {CANARY}")
    terminal.send(f"half a question {CANARY}")
    terminal.wait(lambda: "are forgotten" in terminal.text().replace("\n", " "))
    terminal.ready()
    assert terminal.turns() == 0
    assert "Nothing has been answered" in terminal.say("/why")
    terminal.send("\x15")
    terminal.ready()
    terminal.send("\x1b[A\x1b[A\x1b[A")
    terminal.read(0.3)
    assert CANARY not in terminal.at_cursor()
    terminal.send("\x15\x04")
    assert terminal.end() == 0


def test_a_pipe_is_refused_before_a_model_loads() -> None:
    command = (sys.executable, "-m", "capt_local", "chat", "-m", "no-such-bundle")
    result = subprocess.run(command, input=CANARY.encode(), capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"chat needs a terminal" in result.stderr and CANARY.encode() not in result.stderr
