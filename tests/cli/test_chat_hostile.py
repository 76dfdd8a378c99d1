"""What a hostile model, file or clipboard can do to the terminal of a chat: nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.cli.fake_runtime import model_flags
from tests.cli.terminal import Terminal

# Each piece is followed by a mark at a place that is known if nothing before it was obeyed.
HOSTILE = (
    "\x1b]0;owned\x07",  # the title
    "\x1b]2;owned\x1b\\",
    "\x1b]52;c;b3duZWQ=\x07",  # the clipboard
    "\x1b]8;;http://owned\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H",  # wipes what was said
    "\x1b[1A\x1b[2K",
    "\x1b[31m",
    "\x1b[?1049h",
    "\x1b[6n\x1b[c",  # makes the terminal type an answer
    '\x1bP$q"p\x1b\\',
    "\x1bc",
    "\x9b31m\x9d0;owned\x9c",  # C1
    "\r\x08\x08\x0b\x0c\x0e",
    "\u202eowned\u202c",
    "\u2066\u200b\ufeff",
    "\U000e0041",
    "\x7f\x00",
)
PROGRAM = """
import sys
from pathlib import Path
import pytest
from capt_local.cli import app
from tests.cli.fake_runtime import Script, install
pieces = eval(Path(sys.argv[1]).read_text("utf-8"))
patch = pytest.MonkeyPatch()
install(patch, Script(pieces=[(piece, b"\\x1b]0;owned\\x07") for piece in pieces]))
sys.exit(app.run(sys.argv[2:]))
"""


def test_nothing_of_an_answer_is_obeyed(tmp_path: Path) -> None:
    data = "".join(f"{text}|{number}|" for number, text in enumerate(HOSTILE)).encode()
    # Escape sequences may come in parts, and characters too.
    pieces = [data[start : start + 3] for start in range(0, len(data), 3)]
    script = tmp_path / "pieces.py"
    script.write_text(repr(pieces), "utf-8")
    (tmp_path / "\x1b]0;owned\x07.txt").write_text("\x1b]0;owned\x07")
    terminal = Terminal(
        [str(script), "chat", *model_flags(tmp_path), "--alpha", "1"],
        command=(sys.executable, "-c", PROGRAM),
        cwd=tmp_path,
        environment={"NO_COLOR": "1"},
    )
    titles: list[str] = []
    terminal.screen.set_title = terminal.screen.set_icon_name = titles.append
    terminal.ready()
    before = len(terminal.raw)
    terminal.say("What is it?")
    answered = terminal.raw[before:]
    for line in ("/why", "/context", "/regen alpha=0"):
        terminal.say(line)
    terminal.send("/read \t")
    terminal.read(0.3)
    terminal.send("\x03")
    terminal.ready()
    said = terminal.raw[before:]
    for number in range(len(HOSTILE)):
        assert f"|{number}|" in terminal.text().replace("\n", "")
    assert not titles and "owned" not in terminal.screen.title
    assert "What is it?" in terminal.text()  # nothing was wiped
    # Of the escape sequences that remain, all are the program's own.
    for sequence in (b"\x1b]", b"\x1bP", b"\x1b[31m", b"\x1b[6n", b"\x1b[c", b"\x1bc", b"\x9b"):
        assert sequence not in said, sequence
    assert b"\x1b[2J" not in answered and b"\x1b[?1049h" not in said
    for hidden in ("\u202e", "\u2066", "\u200b", "\U000e0041", "\u009d"):
        assert hidden.encode() not in said
    assert "\\x1b]52;c;b3duZWQ=\\x07" in terminal.text().replace("\n", "")
    terminal.send("\x04")
    assert terminal.end() == 0
    assert os.listdir(tmp_path)
