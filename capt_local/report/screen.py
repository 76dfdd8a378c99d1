"""The one place that prints.

Standard output carries the answer (or the view that was asked for) and nothing else; everything
about it goes to standard error. Whatever is written passes the sanitiser, so neither a model nor
a file can send escape sequences; styles are added here, behind it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TextIO

from capt_local.report.sanitise import Sanitiser, visible

_MARK = ("\x1b[1m\x1b[4m", "\x1b[0m")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that is marked (bold and underlined) or not."""

    text: str
    marked: bool = False


Line = tuple[Span, ...]


def can_style(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether bold and underline work there: a terminal, and not a dumb one.

    NO_COLOR asks for no colour, and there is none; bold and underline are not colour.
    """
    if not stream.isatty() or environment.get("TERM") == "dumb":
        return False
    return os.name != "nt" or "WT_SESSION" in environment or "TERM" in environment


def drop_output() -> None:
    """Sends standard output nowhere: its reader has gone, and Python would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Screen:
    """Both output streams of a command.

    Args:
        out: for the answer.
        err: for everything else.
        style_out: whether marks are shown as bold and underline on `out`; else as [brackets].
        live_err: whether `err` is a terminal, so that a progress line may be redrawn.
        verbose: how often -v was given.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        style_out: bool = False,
        live_err: bool = False,
        verbose: int = 0,
    ) -> None:
        """Starts with nothing written."""
        self._out = out
        self._err = err
        self.style_out = style_out
        self.verbose = verbose
        self._live_err = live_err
        self._progress_shown = ""
        self._sanitiser = Sanitiser()
        self._last = "\n"

    @classmethod
    def standard(cls, verbose: int = 0) -> Screen:
        """The process's own streams. What they cannot encode is spelled out, never an error."""
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                encoding = stream.encoding if stream.isatty() else "utf-8"
                reconfigure(encoding=encoding, errors="backslashreplace")
        return cls(
            sys.stdout,
            sys.stderr,
            style_out=can_style(sys.stdout, os.environ),
            live_err=sys.stderr.isatty() and os.environ.get("TERM") != "dumb",
            verbose=verbose,
        )

    def answer(self, piece: bytes) -> None:
        """Shows the next bytes of the answer at once, as far as they are whole characters."""
        self._answer_text(self._sanitiser.feed(piece))

    def end_answer(self) -> None:
        """Ends the answer with a newline, unless it has one."""
        self._answer_text(self._sanitiser.flush())
        if self._last != "\n":
            self._answer_text("\n")

    def _answer_text(self, text: str) -> None:
        if text:
            self.clear_progress()
            self._last = text[-1]
            self._out.write(text)
            self._out.flush()

    def line(self, text: str = "") -> None:
        """Writes a line to standard output: a result that was asked for."""
        self.show((Span(text),))

    def show(self, *lines: Line) -> None:
        """Writes lines with marks to standard output."""
        self.clear_progress()
        for line in lines:
            self._out.write("".join(self._render(span) for span in line) + "\n")
        self._out.flush()

    def _render(self, span: Span) -> str:
        text = visible(span.text)
        if not span.marked or not text:
            return text
        before, after = _MARK if self.style_out else ("[", "]")
        # A mark that crosses a line end would colour the margin, or look like an open bracket.
        return "\n".join(before + part + after if part else "" for part in text.split("\n"))

    def note(self, text: str) -> None:
        """Writes one line about the work to standard error."""
        self.clear_progress()
        self._err.write(visible(text) + "\n")
        self._err.flush()

    def notes(self, texts: Iterable[str]) -> None:
        """Writes several lines to standard error, each marked as a note."""
        for text in texts:
            self.note(f"note: {text}")

    def detail(self, text: str) -> None:
        """Writes a line to standard error when -v was given."""
        if self.verbose:
            self.note(text)

    def error(self, text: str) -> None:
        """Writes the one line that tells what is wrong."""
        self.note("error: " + text.replace("\n", " "))

    def progress(self, label: str, fraction: float) -> None:
        """Redraws the progress line on a terminal; says nothing elsewhere.

        Args:
            label: what is going on.
            fraction: 0 to 1.
        """
        if not self._live_err:
            return
        shown = visible(f"{label} {100 * min(max(fraction, 0.0), 1.0):.0f} %").replace("\n", " ")
        if shown != self._progress_shown:
            padding = " " * max(0, len(self._progress_shown) - len(shown))
            self._progress_shown = shown
            self._err.write("\r" + shown + padding)
            self._err.flush()

    def clear_progress(self) -> None:
        """Wipes the progress line."""
        if self._progress_shown:
            self._err.write("\r" + " " * len(self._progress_shown) + "\r")
            self._err.flush()
            self._progress_shown = ""
