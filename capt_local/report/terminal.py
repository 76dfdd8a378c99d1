"""The one place that prints.

Standard output carries the answer (or the view that was asked for) and nothing else; everything
about it goes to standard error. Whatever is written passes the sanitiser, so neither a model nor
a file can send escape sequences; styles are added here, behind it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import termios
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from capt_local.errors import UsageError
from capt_local.report.views import Sanitiser, TerminalInfo, View, cells, plain, visible

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
_REDRAW = 0.1  # seconds; redrawing must not slow down the work


def terminal_info(stream: TextIO, environment: Mapping[str, str]) -> TerminalInfo | None:
    """The capabilities of a terminal; None if the stream is no terminal, or a dumb one.

    NO_COLOR asks for no colour, and there is none; bold and underline are not colour.
    """
    if not stream.isatty() or environment.get("TERM") == "dumb":
        return None
    return TerminalInfo(
        width=_width(stream, environment),
        colour=not environment.get("NO_COLOR"),
        encoding=stream.encoding or "ascii",
    )


def _width(stream: TextIO, environment: Mapping[str, str]) -> int:
    columns = environment.get("COLUMNS", "")
    if columns.isascii() and columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or TerminalInfo().width
    except (OSError, ValueError):  # `isatty` is true, but it is no real terminal
        return TerminalInfo().width


def drop_output(*, asides: bool = False) -> None:
    """Redirects standard output (`asides`: standard error) to /dev/null; its reader has gone.

    Else Python would report an error at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (sys.stderr if asides else sys.stdout).fileno())
    os.close(nowhere)


def check_output() -> None:
    """Refuses to run with standard output closed (UsageError).

    The next file that is opened would get descriptor 1, and with it what libraries print.
    """
    if sys.stdout is None:
        raise UsageError("Standard output is closed. Send it to a file, a pipe or /dev/null.")


def output_error(error: OSError) -> UsageError:
    """The error for standard output that cannot be written; its remaining output is dropped."""
    with contextlib.suppress(OSError, ValueError):  # no real stream, as in tests
        drop_output()
    return UsageError(f"Standard output cannot be written: {error.strerror or 'it is broken'}.")


class Wrap:
    """Wraps streamed text between words to the width of a terminal.

    A word is held back until the blank behind it has come. Wide characters (Chinese, Japanese) are
    words of their own. Nothing is lost: a line break takes the place of the blanks there.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 2)
        self._column = 0
        self._blanks = self._word = ""

    def feed(self, text: str) -> str:
        """What can be shown of the text so far."""
        shown = ""
        for character in text:
            if character == "\n":
                shown += self._place() + "\n"
                self._column, self._blanks = 0, ""
            elif character in " \t":
                shown += self._place()
                self._blanks += character
            else:
                if cells(character) == 2:
                    shown += self._place()
                self._word += character
                if cells(character) == 2 or cells(self._word) >= self._width:
                    shown += self._place()
        return shown

    def _place(self) -> str:
        """The word that was held back, on this line or the next one."""
        word, self._word = self._word, ""
        if not word:
            return ""
        size, blanks = cells(word), self._blanks
        self._blanks = ""
        # A tab may be as wide as eight columns.
        before = sum(8 if blank == "\t" else 1 for blank in blanks)
        if self._column and self._column + before + size > self._width:
            self._column = size
            return "\n" + word
        self._column += before + size
        return blanks + word


class Screen:
    """Both output streams of a command: `out` for the answer, `err` for everything else.

    `out_info` and `err_info` are the capabilities of their terminals; None: plain text without a
    progress line.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        out_info: TerminalInfo | None = None,
        err_info: TerminalInfo | None = None,
        verbose: int = 0,
    ) -> None:
        self._out = out
        self._err = err
        self.out_info = out_info
        self.verbose = verbose
        self._err_info = err_info
        self._progress_shown = ""
        self._progress_cells = 0
        self._progress_at = 0.0
        self._sanitiser = Sanitiser()
        self._thoughts = Sanitiser()
        self._last_thought = ""
        self._last = "\n"
        self._wrap: Wrap | None = None

    @classmethod
    def standard(cls, verbose: int = 0) -> Screen:
        """The process's own streams. Characters that they cannot encode are escaped.

        A stream that is closed takes what is written and drops it; see `check_output`.
        """
        out, err = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
        for stream in (out, err):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                encoding = stream.encoding if stream.isatty() else "utf-8"
                reconfigure(encoding=encoding, errors="backslashreplace")
        out_info, err_info = (terminal_info(stream, os.environ) for stream in (out, err))
        return cls(out, err, out_info=out_info, err_info=err_info, verbose=verbose)

    @property
    def on_terminal(self) -> bool:
        """Whether at least one of the streams is a terminal."""
        return self._out.isatty() or self._err.isatty()

    @property
    def err_on_terminal(self) -> bool:
        """Whether standard error is a terminal that can show more than plain lines."""
        return self._err_info is not None

    def thought(self, piece: bytes, *, dim: bool) -> None:
        """Shows the next bytes of a model's reasoning on standard error; `dim`: fainter."""
        self._thought_text(self._thoughts.feed(piece), dim=dim)

    def end_thoughts(self) -> None:
        """Ends the reasoning with a newline, if there was any."""
        if self._last_thought:
            self._thought_text(self._thoughts.flush(), dim=False)
            self._to_err("\n" if self._last_thought != "\n" else "")
            self._last_thought = ""

    def _thought_text(self, text: str, *, dim: bool) -> None:
        if text:
            self.clear_progress()
            self._last_thought = text[-1]
            styled = dim and self._err_info is not None
            self._to_err(f"{_DIM}{text}{_NOT_DIM}" if styled else text)

    def answer(self, piece: bytes) -> None:
        """Shows the next bytes of the answer at once, as far as they are whole characters."""
        self._answer_text(self._sanitiser.feed(piece))

    def end_answer(self) -> None:
        """Ends the answer with a newline, unless it has one."""
        self.end_thoughts()
        self._answer_text(self._sanitiser.flush())
        if self._last != "\n":
            self._answer_text("\n")
        self._wrap = None

    def _answer_text(self, text: str) -> None:
        if text:
            self.clear_progress()
            self.end_thoughts()
            self._last = text[-1]
            if self.out_info is not None and self._wrap is None:
                look = terminal_info(self._out, os.environ) or self.out_info  # as wide as it is now
                self._wrap = Wrap(look.width)
            self._to_out(text if self._wrap is None else self._wrap.feed(text))

    def line(self, text: str = "") -> None:
        """Writes a line of the result to standard output."""
        self.clear_progress()
        self._to_out(visible(text) + "\n")

    def show(self, *views: View) -> None:
        """Writes views to standard output: drawn on a terminal, elsewhere as plain lines."""
        self.clear_progress()
        self._to_out("".join(_as_text(view, self.out_info) + "\n" for view in views))

    def aside(self, *views: View) -> None:
        """Writes views to standard error: in a session standard output has the answers alone."""
        self.clear_progress()
        self._err_info = terminal_info(self._err, os.environ)
        self._to_err("".join(_as_text(view, self._err_info) + "\n" for view in views))

    def note(self, text: str) -> None:
        """Writes one line about the work to standard error."""
        self.clear_progress()
        self._to_err(visible(text) + "\n")

    def notes(self, texts: Iterable[str]) -> None:
        """Writes several lines to standard error, each marked as a note."""
        for text in texts:
            self.note(f"note: {text}")

    def detail(self, text: str) -> None:
        """Writes a line to standard error when -v was given."""
        if self.verbose:
            self.note(text)

    def error(self, text: str) -> None:
        """Writes the one line that says what is wrong."""
        self.note("error: " + text.replace("\n", " "))

    def progress(self, label: str, fraction: float | None) -> None:
        """Redraws the progress line on a terminal now and then; `fraction` is 0 to 1 if known."""
        if self._err_info is None:
            return
        now = time.monotonic()
        if label == self._progress_shown and now - self._progress_at < _REDRAW:
            return
        from capt_local.report.drawing import progress_line, progress_width

        self._progress_shown, self._progress_at = label, now
        self._progress_cells = progress_width(self._err_info)
        known = None if fraction is None else min(max(fraction, 0.0), 1.0)
        self._to_err("\r" + progress_line(label, known, self._err_info))

    def clear_progress(self) -> None:
        """Wipes the progress line."""
        if self._progress_shown:
            self._to_err("\r" + " " * self._progress_cells + "\r")
            self._progress_shown = ""

    def _to_err(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()

    def _to_out(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output_error(error) from None


def _as_text(view: View, look: TerminalInfo | None) -> str:
    if look is None:
        return "".join(f"{line}\n" for line in plain(view))
    from capt_local.report.drawing import drawn  # `--help` and answers in a pipe need no Rich

    return drawn(view, look)


def terminal_restorer() -> Callable[[], None]:
    """A function that restores the terminal, such as its echo, after an abrupt end."""
    if not sys.stdin or not sys.stdin.isatty():
        return lambda: None
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def restore() -> None:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
        os.write(terminal, b"\x1b[?2004l")  # no bracketed paste

    return restore
