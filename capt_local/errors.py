"""The error classes.

Every error that a user can cause is one of these. The message is one line, says what is wrong
and what to do, and never holds the user's text: it goes to terminals, logs and bug reports.
Each kind has its exit code and its code in JSON here, in one place.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar


class CaptError(Exception):
    """Base of all errors that are explained to the user in one line.

    Attributes:
        exit_code: of a process that ends with it (see `cli.exits`).
        code: its name in JSON.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "unexpected"


class UsageError(CaptError):
    """The request itself is not possible: an option, a value, an empty or undecodable prompt."""

    exit_code = 2
    code = "invalid_request"


class ModelError(CaptError):
    """A model file or bundle is missing, broken, or not what its manifest says."""

    exit_code = 3
    code = "model_error"


class MemoryShortage(CaptError):
    """The models do not fit in the memory of this machine; the message has the estimate."""

    exit_code = 4
    code = "memory_shortage"


class ContextOverflow(CaptError):
    """A text does not fit into the smallest context; nothing has been computed or cut.

    Attributes:
        counts: tokens that the text takes, by role.
        limit: tokens that the smallest context holds.
    """

    exit_code = 5
    code = "context_overflow"

    def __init__(self, counts: Mapping[str, int], limit: int, reserve: int = 0) -> None:
        """Builds the one-line message from token counts alone."""
        self.counts = dict(counts)
        self.limit = limit
        self.reserve = reserve
        each = ", ".join(f"{role} {count}" for role, count in self.counts.items())
        room = f" and {reserve} for the answer" if reserve else ""
        super().__init__(
            f"The text does not fit: {each} tokens{room}, but the context holds {limit}. "
            "Shorten the text or use a larger --ctx-size; nothing was cut."
        )


class TextTooLong(CaptError):
    """A run of text without a place to split it is too long for the tokenizer."""

    exit_code = 5

    def __init__(self, size: int, limit: int) -> None:
        """Builds the one-line message from sizes alone."""
        super().__init__(
            f"The text has a stretch of {size} bytes without a place where it can be divided, and "
            f"the tokenizer takes {limit}. Break it with spaces or line ends; nothing was cut."
        )


class UnspellableText(UsageError):
    """A text holds a byte that a model has no token for; it concerns that text alone."""

    exit_code = 5
    code = "unspellable_text"

    def __init__(self, role: str, byte: int) -> None:
        """Names the byte, most often of a control character, and nothing around it."""
        super().__init__(
            f"The {role} has no token for the byte 0x{byte:02x}, which the text holds, and no text "
            "is changed. Remove such characters, or use a model with byte tokens."
        )


class NumericalError(CaptError):
    """A model returned logits that are not finite; its weights or the backend are broken."""

    exit_code = 3
    code = "numerical_error"


class Cancelled(CaptError):
    """The work was stopped between two steps on request."""

    exit_code = 130
    code = "cancelled"


class BackendFailed(ModelError):
    """llama.cpp is about to end this process: a device has failed, or it found a defect."""


class WorkerFailed(ModelError):
    """The process that holds the models cannot go on."""


def error_location(error: BaseException) -> str:
    """Location of the innermost frame in this package, or else of the last: "decoding/loop.py:12".

    Safe to report, unlike the message of the exception, which may hold a text of the user.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    package = Path(__file__).resolve().parent
    ours = [frame for frame in frames if package in Path(frame.filename).resolve().parents]
    frame = ours[-1] if ours else frames[-1]
    path = Path(frame.filename)
    name = path.resolve().relative_to(package).as_posix() if ours else path.name
    return f"{name}:{frame.lineno}"
