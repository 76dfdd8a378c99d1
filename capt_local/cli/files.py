"""Files of a command: the prompt (-p, -f, both or standard input), the answer and the report.

Text is read as bytes and must be UTF-8. Errors name the option and the place of a bad byte, never
the text or the name of the file, which may be a patient's.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from capt_local.cli.options import PromptFlags, option
from capt_local.config import Feature
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message, refuse_nul

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle

_PART = ".capt-local-part-"
# How answers, reports, scored items, summaries of batch and tables of eval begin.
_OURS = re.compile(
    rb'\{"id": "capt-|<!doctype html>.{0,4000}<title>capt-local report'
    rb'|\{"id": "(?:[^"\\]|\\.)*", "method": "|\{\n "records": |task,kind,method,metric,value,',
    re.DOTALL,
)
_FIRST_PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf", re.DOTALL)
_BOM = "\ufeff"
Asked = str | list[Message]


def read_prompt(flags: PromptFlags, stdin: BinaryIO | None = None) -> Asked:
    """What the flags ask: raw text as a string, else messages.

    Args:
        flags: of the command line.
        stdin: standard input as bytes; the process's own when None.

    Raises:
        UsageError: no text, empty text, standard input as both parts, text that is not UTF-8, or
            a terminal as standard input with nothing else given.
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
    if flags.prompt is None and flags.file is None:
        return decoded(_stdin_bytes(stdin, wait=False), "Standard input")
    if flags.prompt == "-" and str(flags.file) == "-":
        raise UsageError("Standard input cannot be both the prompt (-p) and the file (-f).")
    parts = []
    if flags.prompt == "-":
        parts.append(decoded(_stdin_bytes(stdin, wait=True), "Standard input"))
    elif flags.prompt is not None:
        parts.append(checked(flags.prompt, "-p"))
    if flags.file is not None and str(flags.file) == "-":
        parts.append(decoded(_stdin_bytes(stdin, wait=True), "Standard input"))
    elif flags.file is not None:
        parts.append(decoded(_file_bytes(flags.file), "The prompt file (-f)"))
    if len(parts) == 2:
        for part, name in zip(parts, ("The text of -p", "The file of -f"), strict=True):
            if not part.strip():
                raise UsageError(f"{name} is empty, so the prompt is not complete.")
    return "\n\n".join(parts)


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


@dataclass(frozen=True, slots=True)
class ForceFlags:
    """Whether files of others may be replaced."""

    force: Annotated[
        bool,
        option("--force", help="Let -o and --html replace a file that capt-local did not write."),
    ] = False


class OutputFile:
    """A file that is written at the end, but whose place is tried out before.

    Args:
        path: of the file.
        name: of the file in errors: what the user calls it, never its path.
        inputs: files that the command reads; none of them is ever replaced, links included.
        force: whether a file that we did not write may be replaced; None: no, and there is no
            --force that would let it.

    Raises:
        UsageError: the file cannot be written there, or would take the place of another one.
            Nothing has been computed yet.
    """

    def __init__(
        self,
        path: Path,
        name: str = "The output (-o)",
        *,
        inputs: Iterable[Path | None] = (),
        force: bool | None = None,
    ) -> None:
        """Makes and removes an empty file beside `path`, to find out now and not at the end."""
        self._path = path
        self._name = name
        try:
            regular = path.is_file() or not path.exists()
            exists = path.exists()
        except OSError as error:  # such as a name that is too long
            raise self._refusal(error) from None
        if not regular:
            raise UsageError(f"{name} is not a regular file. Name another one.")
        if any(one is not None and same_file(path, one) for one in inputs):
            raise UsageError(f"{name} is a file that this command reads. Name another one.")
        if exists and not force and not _is_ours(path):
            forced = "" if force is None else ", or give --force to replace it"
            raise UsageError(
                f"{name} exists, and capt-local cannot tell that it wrote it. Name another one"
                f"{forced}."
            )
        _remove_parts(path.parent)
        self._new_file().discard()

    def spare(self) -> str | None:
        """Why what is incomplete is not written here: it would replace an earlier file.

        None where there is no file, so that it can be written.
        """
        if not os.path.lexists(self._path):
            return None
        return f"{self._name} exists and stays as it was: what is incomplete replaces no file."

    def write(self, text: str) -> None:
        """Writes the file in one go: beside its place, flushed to the disk, then renamed.

        Raises:
            UsageError: the disk is full or the folder has gone; what was there before is intact.
        """
        part = self._new_file()
        try:
            # By its handle: whoever may write the folder could put a link in the place of the name.
            with open(part.handle, "w", encoding="utf-8", newline="", closefd=False) as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part.path, self._path)
            os.close(part.handle)
        except BaseException as error:
            part.discard()
            if isinstance(error, OSError):
                raise self._refusal(error) from None
            raise

    def _new_file(self) -> _Part:
        """An empty file of mode 0600 in the folder of the output, locked while it is written."""
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=_PART)
        except OSError as error:
            raise self._refusal(error) from None
        _lock(handle)
        return _Part(handle, name)

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._name} cannot be written: {error.strerror}. Nothing was written.")


@dataclass(frozen=True, slots=True)
class _Part:
    """A file that is not whole yet."""

    handle: int
    path: str

    def discard(self) -> None:
        """Removes it."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.close(self.handle)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, through links too."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def files_of(bundle: Bundle) -> Iterator[Path]:
    """The files of a bundle that decide an answer; no output may take the place of one."""
    for model in bundle.models.values():
        yield model.path
        if found := _FIRST_PART.fullmatch(model.path.name):
            for number in range(2, min(int(found[2]), 1024) + 1):
                yield model.path.with_name(f"{found[1]}-{number:05}-of-{found[2]}.gguf")
        if model.template_file is not None:
            yield model.template_file
    yield from (adapter.path for adapter in bundle.adapters.values())
    if bundle.folder is not None:
        from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE

        yield from (bundle.folder / name for name in (MANIFEST, SIGNATURE, RECEIPT))


def _is_ours(path: Path) -> bool:
    """Whether a file is empty, or begins as our JSON objects and reports do."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8192)
    except OSError:
        return False
    return not start or _OURS.match(start) is not None


def _lock(handle: int) -> bool:
    """Locks an open file; False where another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # without POSIX no lock, so parts of killed runs stay
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_parts(folder: Path) -> None:
    """Removes what a killed run has left: files of our prefix that no process has locked."""
    with contextlib.suppress(OSError):
        for part in folder.glob(f"{_PART}*"):
            with contextlib.suppress(OSError):
                handle = os.open(part, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if os.fstat(handle).st_uid == os.geteuid() and _lock(handle):
                        part.unlink()
                finally:
                    os.close(handle)


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


def mebibytes(count: int) -> str:
    """A number of bytes as MiB, rounded."""
    return f"{count / (1 << 20):,.0f} MiB"
