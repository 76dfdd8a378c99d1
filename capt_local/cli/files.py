"""Where the prompt comes from: one of -p, -f or standard input.

Text is read as bytes and must be UTF-8. Errors name the option and the place of a bad byte, never
the text or the name of the file, which may be a patient's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from capt_local.cli.options import PromptFlags, option
from capt_local.config.limits import Feature
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message, refuse_nul
from capt_local.report.json import Answer

_BOM = "\ufeff"
Asked = str | list[Message]


def read_prompt(flags: PromptFlags, stdin: BinaryIO | None = None) -> Asked:
    """What the flags ask: raw text as a string, else messages.

    Args:
        flags: of the command line.
        stdin: standard input as bytes; the process's own when None.

    Raises:
        UsageError: no text, empty text, text from two places, text that is not UTF-8, or a
            terminal as standard input with nothing else given.
    """
    text = _text(flags, stdin)
    if not text.strip():
        raise UsageError("The prompt is empty. Give it with -p, -f or on standard input.")
    if flags.raw:
        if flags.system is not None:
            raise UsageError("--raw text has no turns, so --system cannot go with it.")
        return text
    messages = [Message("user", text)]
    if flags.system is not None:
        messages.insert(0, Message("system", checked(flags.system, "--system")))
    return messages


def _text(flags: PromptFlags, stdin: BinaryIO | None) -> str:
    if flags.prompt is not None and flags.file is not None:
        raise UsageError("The prompt is given twice, with -p and -f. Give one of them.")
    if flags.file is not None and str(flags.file) != "-":
        return decoded(_file_bytes(flags.file), "The prompt file (-f)")
    if flags.prompt is not None and flags.prompt != "-":
        return checked(flags.prompt, "-p")
    asked_for = flags.prompt == "-" or flags.file is not None
    return decoded(_stdin_bytes(stdin, wait=asked_for), "Standard input")


def _stdin_bytes(stdin: BinaryIO | None, *, wait: bool) -> bytes:
    """All of standard input; looked at only here, since a process may have none."""
    if stdin is None and sys.stdin is not None:
        stdin = sys.stdin.buffer
    if stdin is None or (not wait and stdin.isatty()):
        raise UsageError("There is no prompt. Give it with -p, -f or on standard input.")
    try:
        return stdin.read()
    except OSError as error:
        raise UsageError(f"Standard input cannot be read: {error.strerror}.") from None


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        # The name of the file is not repeated: people name files after patients.
        raise UsageError(f"The prompt file (-f) cannot be read: {error.strerror}.") from None


def decoded(data: bytes, what: str) -> str:
    """Bytes as text; a byte order mark in front is not part of it.

    Raises:
        UsageError: naming the offset of the first byte that is NUL or not UTF-8.
    """
    refuse_nul(data, what)
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not valid UTF-8: byte {error.start} (counted from 0) is "
            f"0x{data[error.start]:02x}. Convert the text to UTF-8."
        ) from None


def checked(text: str, option: str) -> str:
    """Text from the command line; bytes that were not UTF-8 arrive as lone surrogates.

    Raises:
        UsageError: naming the offset of the first such character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text of {option} is not valid UTF-8 at character {error.start} (counted from 0)."
        ) from None
    refuse_nul(text, f"The text of {option}")
    return text


class OutputFile:
    """A file that is written at the end, but whose place is tried out before.

    Args:
        path: of the file. What is there already is replaced when the answer is complete.
        name: of the file in errors: what the user calls it, never its path.

    Raises:
        UsageError: the file cannot be written there. Nothing has been computed yet.
    """

    def __init__(self, path: Path, name: str = "The output (-o)") -> None:
        """Makes and removes an empty file beside `path`, to find out now and not at the end."""
        self._path = path
        self._name = name
        try:
            regular = path.is_file() or not path.exists()
        except OSError as error:  # such as a name that is too long
            raise self._refusal(error) from None
        if not regular:
            raise UsageError(f"{name} is not a regular file. Name another one.")
        os.unlink(self._new_file())

    def write(self, text: str) -> None:
        """Writes the file in one go: beside its place, flushed to the disk, then renamed.

        Raises:
            UsageError: the disk is full or the folder has gone; what was there before is intact.
        """
        temporary = self._new_file()
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self._path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise self._refusal(error) from None
            raise

    def _new_file(self) -> str:
        """An empty file of mode 0600 in the folder of the output."""
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".capt-local-")
        except OSError as error:
            raise self._refusal(error) from None
        os.close(handle)
        return name

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._name} cannot be written: {error.strerror}. Nothing was written.")


TOP = 3
"""Candidates of each model that a report tells."""


@dataclass(frozen=True, slots=True)
class ReportFlags:
    """Whether a report is written, and what is beside the answer in it."""

    html: Annotated[
        Path | None,
        option(
            "--html",
            metavar="PATH",
            help="Write what the expert changed as one HTML page here (mode 0600).",
        ),
        Feature.REPORTS,
    ] = None
    with_target: Annotated[
        bool,
        option("--with-target", help="The target's own answer to the same prompt beside it."),
    ] = False


class ReportFile:
    """The place of a report, tried out before anything is computed.

    Args:
        path: of the file.

    Raises:
        UsageError: the file cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        self._file = OutputFile(path, "The report (--html)")

    def write(self, answer: Answer, alone: Answer | None = None) -> None:
        """Writes the page, whole or not at all.

        Raises:
            UsageError: the disk is full, or the folder has gone.
        """
        from capt_local.report.html import page

        self._file.write(page(answer, alone))


def mebibytes(count: int) -> str:
    """A number of bytes as MiB, rounded."""
    return f"{count / (1 << 20):,.0f} MiB"
