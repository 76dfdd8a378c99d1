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
from typing import TYPE_CHECKING

from capt_local.errors import UsageError
from capt_local.prompting.messages import Message, refuse_nul

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.documents import Document

# How answers, reports, scored items, summaries of batch and tables of eval begin.
_OUR_FORMATS = re.compile(
    rb'\{"id": "capt-|<!doctype html>.{0,4000}<title>capt-local report'
    rb'|\{"id": "(?:[^"\\]|\\.)*", "method": "|\{\n "records": |task,kind,method,metric,value,'
    rb"|id,status,",
    re.DOTALL,
)
_NO_PROMPT = "There is no prompt. Give it with -p, -f or on standard input."
Asked = str | list[Message]


@dataclass(frozen=True, slots=True)
class PromptInput:
    """The prompt that the flags give.

    Attributes:
        asked: raw text as a string, else messages.
        source: the document that the question is about, or else the prompt itself.
        of: what `source` is: "document" or "prompt".
    """

    asked: Asked
    source: Document
    of: str = "document"

    @property
    def notices(self) -> list[str]:
        """What was left out of the document, a sentence each."""
        return [f"the document: {notice}." for notice in self.source.notices]


def read_prompt(
    prompt: str | None,
    file: Path | None,
    *,
    system: str | None = None,
    raw: bool = False,
    encoding: str | None = None,
) -> PromptInput:
    """The prompt of -p and -f, "-" being standard input; with both, a blank line is between them.

    Raises:
        UsageError: there is no text, or it cannot be read.
    """
    from capt_local.documents import Document, read_path

    if prompt == "-" and str(file) == "-":
        raise UsageError("Standard input cannot be both the prompt (-p) and the file (-f).")
    parts = []
    if prompt == "-" or (prompt is None and file is None):
        parts.append(_stdin_document(encoding, wait=prompt == "-"))
    elif prompt is not None:
        parts.append(Document(checked(prompt, "-p")))
    if file is not None and str(file) == "-":
        parts.append(_stdin_document(encoding, wait=True))
    elif file is not None:
        parts.append(read_path(file, "The prompt file (-f)", encoding))
    if len(parts) == 2:
        for part, name in zip(parts, ("The text of -p", "The file of -f"), strict=True):
            if not part.text.strip():
                raise UsageError(f"{name} is empty, so the prompt is not complete.")
    of = "prompt" if file is None and prompt not in (None, "-") else "document"
    text = "\n\n".join(part.text for part in parts)
    if not text.strip():
        raise UsageError("The prompt is empty. Give it with -p, -f or on standard input.")
    if raw:
        if system is not None:
            raise UsageError("--raw text has no turns, so a system text cannot go with it.")
        return PromptInput(text, parts[-1], of)
    front = [] if system is None else [Message("system", system)]
    return PromptInput([*front, Message("user", text)], parts[-1], of)


def _stdin_document(encoding: str | None, *, wait: bool) -> Document:
    from capt_local.documents import read

    return read(stdin_bytes(_NO_PROMPT, wait=wait), what="Standard input", encoding=encoding)


def stdin_bytes(nothing: str, *, wait: bool = False) -> bytes:
    """All of standard input; a terminal only with `wait`, else UsageError with text `nothing`."""
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if stdin is None or (not wait and stdin.isatty()):
        raise UsageError(nothing)
    try:
        return stdin.read()
    except OSError as error:
        raise UsageError(f"Standard input cannot be read: {error.strerror}.") from None


def stdin_has_data() -> bool:
    """Whether standard input has unread data; does not block."""
    try:
        import fcntl
        import termios

        number = sys.stdin.fileno()
        waiting = b"" if os.isatty(number) else fcntl.ioctl(number, termios.FIONREAD, b"\0" * 4)
    except (AttributeError, ImportError, OSError, ValueError):  # none, or no real stream
        return False
    return int.from_bytes(waiting, sys.byteorder) > 0


def read_text(path: Path, what: str, largest: int = 64 << 20) -> str:
    """A text file of at most `largest` bytes, without a byte order mark in front.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    from capt_local.strict_json import read_bytes

    data = read_bytes(path, what, largest=largest, pipes=True)
    refuse_nul(data, what)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not valid UTF-8: byte {error.start} (counted from 0) is "
            f"0x{data[error.start]:02x}. Convert the text to UTF-8."
        ) from None


def checked(text: str, option: str) -> str:
    """Text from the command line. Raises UsageError: it is not UTF-8, or holds a NUL."""
    try:
        text.encode("utf-8")  # bytes that were not UTF-8 arrive as lone surrogates
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text of {option} is not valid UTF-8 at character {error.start} (counted from 0)."
        ) from None
    refuse_nul(text, f"The text of {option}")
    return text


class OutputFile:
    """A file that is written once at the end; the constructor checks that it can be written.

    An existing file is replaced only if it is empty, if it begins as what we write, or by force;
    one of the `inputs` of the command never, links to it included. `name` stands in errors, never
    the path. Where `force` is None, the verb has no --force.

    Raises:
        UsageError: the file cannot be written, or may not replace the existing one.
    """

    def __init__(
        self,
        path: Path,
        name: str = "The output (-o)",
        *,
        inputs: Iterable[Path | None] = (),
        force: bool | None = None,
    ) -> None:
        self._name = name
        self._path = path
        try:
            exists = path.exists()
            regular = path.is_file() or not exists
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
        handle, part = self._new_file()
        os.close(handle)
        os.unlink(part)

    def why_kept(self) -> str | None:
        """Why incomplete output is not written here; None if there is no earlier file."""
        if not os.path.lexists(self._path):
            return None
        return f"{self._name} exists and stays as it was: incomplete output replaces no file."

    def write(self, text: str) -> None:
        """Writes the file. Raises UsageError: it cannot be; what was there before is intact."""
        handle, part = self._new_file()
        try:
            # By its handle: others who may write to the folder could replace the name by a link.
            with open(handle, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, self._path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            if isinstance(error, OSError):
                raise self._refusal(error) from None
            raise

    def _new_file(self) -> tuple[int, str]:
        """An empty file of mode 0600 in the folder of the output: a handle, and its path."""
        try:
            return tempfile.mkstemp(dir=self._path.parent, prefix=".capt-local-part-")
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._name} cannot be written: {error.strerror}. Nothing was written.")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, through links too."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def files_of(bundle: Bundle) -> Iterator[Path]:
    """The files of a bundle that determine its answers; no output may replace one."""
    for model in bundle.models.values():
        yield model.path
        if model.template_file is not None:
            yield model.template_file
    yield from (file.path for _, file in bundle.attached)
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
    return not start or _OUR_FORMATS.match(start) is not None
