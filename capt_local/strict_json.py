"""Strict readers of untrusted files; errors name the position of what is wrong.

Unambiguous JSON of limited depth and size; structures by `msgspec`. No error quotes a file or its
name: both may be a patient's.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import msgspec

from capt_local.errors import UsageError


class ParseError(Exception):
    """A line or value is invalid; the message says why, and quotes nothing of it."""


class Problems:
    """Collects what is wrong with a file, line by line, and raises it as one error.

    Args:
        what: how errors call the file.
        unit: what is counted: "line", or "row" where rows are not lines.
    """

    def __init__(self, what: str, unit: str = "line") -> None:
        self._what = what
        self._unit = unit
        self._first: tuple[int | None, str] | None = None
        self._lines: set[int] = set()

    def add(self, line: int, problem: str | ParseError) -> None:
        """Notes that a line is wrong, and why; the first one is raised."""
        if self._first is None:
            self._first = (line, str(problem))
        self._lines.add(line)

    def raise_first(self) -> None:
        """Raises UsageError with the first that was noted and the number of lines, if any."""
        if self._first is None:
            return
        line, problem = self._first
        more = len(self._lines) - 1
        rest = f" {more} more {self._unit}{'s are' if more > 1 else ' is'} wrong too."
        raise UsageError(f"{self._what}, {self._unit} {line}: {problem}.{rest if more else ''}")

    def fail(self, problem: str) -> NoReturn:
        """Raises the error of a file that is wrong as a whole."""
        raise UsageError(f"{self._what}: {problem}.")


class Stamp(tuple[int, int, int, int, int]):
    """Device, inode, size, and the times of the last change of content and of anything at all (ns).

    Whoever may write a file can set the first time back, but not the second. A write through a
    shared mapping may change content and no time, so where other accounts may write a file, its
    digest is compared too (see `llama.weights.LockedFile`).

    Attributes:
        sha256: of the content that was checked, if it was computed; it is ignored when stamps
            are compared.
    """

    sha256: str | None = None

    def with_digest(self, sha256: str | None) -> Stamp:
        """The same stamp with the digest of the content."""
        found = Stamp(self)
        found.sha256 = sha256
        return found


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file, of what `os.stat` or `os.fstat` says of it."""
    return Stamp((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


LARGEST = 64 << 20


def read_bytes(path: Path, what: str, *, largest: int = LARGEST, pipes: bool = False) -> bytes:
    """The bytes of a file, without the mark that some programs put in front of UTF-8.

    Args:
        path: of the file.
        what: what errors call it; its name may be a patient's.
        largest: bytes that it may have; nothing is read beyond.
        pipes: whether it may be a pipe, which is waited for.

    Raises:
        UsageError: it cannot be read, or is too large.
    """
    try:
        with open(path, "rb") if pipes else open_regular(path) as stream:
            data = stream.read(largest + 1)
    except FileNotFoundError:
        raise UsageError(f"{what} cannot be read: there is no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be read: {reason}.") from None
    if len(data) > largest:
        raise UsageError(f"{what} is larger than {size_text(largest)}.")
    return data.removeprefix(BOM_UTF8)


def size_text(count: int) -> str:
    """A number of bytes as text, in MiB or KiB."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def utf8(data: bytes) -> str:
    """Bytes as text; raises ParseError with the place of the first that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The error itself holds the bytes.
        other = " (UTF-16?)" if data.startswith((BOM_UTF16_BE, BOM_UTF16_LE)) else ""
        raise ParseError(f"not UTF-8 at byte {error.start}{other}") from None


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, for reading, with `follow` also through a symbolic link.

    A pipe or device is refused (OSError) at once instead of waited for.
    """
    safe = os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        stream = open(  # noqa: SIM115 - the caller closes it
            path, "rb", opener=lambda name, flags: os.open(name, flags | safe)
        )
    except ValueError:  # a name with a zero byte
        raise OSError(errno.EINVAL, "it has an impossible name") from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is not a file")
    return stream


def read_regular(path: Path, most: int) -> bytes:
    """The first bytes of a regular file; see `open_regular`."""
    with open_regular(path) as stream:
        return stream.read(most)


def others_may_write(found: os.stat_result) -> bool:
    """Whether another account than this one and root may write a file of that status."""
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return bool(shared) or found.st_uid not in (os.geteuid(), 0)


def make_private_folder(folder: Path) -> None:
    """Makes a folder and those above it that are missing, each with mode 0700 despite the umask."""
    missing = []
    for each in (folder, *folder.parents):
        if each.is_dir():
            break
        missing.append(each)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


_Kind = TypeVar("_Kind")
DEEPEST = 64  # objects and lists inside each other
_DIGITS = 1000  # of a whole number; reading takes the square of their count
# Lone surrogates can occur in JSON only as such escapes.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Number(float):
    """A float whose text is the literal in the file: 4.10, 0.00005."""

    __slots__ = ("_written",)
    _written: str

    def __new__(cls, written: str) -> Number:
        found = super().__new__(cls, written)
        found._written = written
        return found

    def __str__(self) -> str:
        return self._written


def parse_json(data: bytes, *, as_written: bool = False) -> object:
    """Parses JSON; refuses repeated keys, NaN, infinity, lone surrogates and deep nesting.

    With `as_written`, numbers that are not integers are `Number`, which print as in the file.

    Raises:
        ParseError: it is refused.
    """
    text = utf8(data)
    value = load(text, as_written=as_written)
    if _SURROGATE.search(text):
        check_characters(value)
    return value


def parse_object(data: bytes, *, as_written: bool = False) -> dict[str, object]:
    """Like `parse_json`, for an object."""
    value = parse_json(data, as_written=as_written)
    if not isinstance(value, dict):
        raise ParseError("not a JSON object")
    return value


def load(text: str, *, as_written: bool = False) -> object:
    """Like `parse_json` for a text, but without the check for lone surrogates."""
    try:
        value: object = _DECODERS[as_written].decode(text)
    except RecursionError:
        raise ParseError("nested too deeply") from None
    except ValueError:
        # A message of the JSON reader would hold a part of the line.
        raise ParseError("not JSON") from None
    # With fewer brackets it cannot be too deep; counting them is faster than walking the value.
    if text.count("[") + text.count("{") > DEEPEST:
        outer = [value]
        for _ in range(DEEPEST + 1):
            outer = [inner for each in outer for inner in _inside(each)]
        if outer:
            raise ParseError("nested too deeply")
    return value


def _inside(value: object) -> list[object]:
    """The values one level deeper; an empty list or object still counts as a level."""
    if isinstance(value, dict):
        return list(value.values()) or [None]
    return (value or [None]) if isinstance(value, list) else []


def parse_toml(data: bytes, largest: int, what: str) -> dict[str, Any]:
    """TOML without control characters in its texts, which go to terminals and reports.

    Raises:
        ParseError: it is too large, or no such TOML.
    """
    if len(data) > largest:
        raise ParseError(f"larger than {largest >> 10} KiB; this is not {what}")
    import tomllib  # every verb imports this file, and few read TOML

    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number without end
        line = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise ParseError(f"not valid TOML{line}; this is not {what}") from None
    _refuse_control_characters(found)
    return found


def _refuse_control_characters(value: object, place: str = "") -> None:
    if isinstance(value, str) and _CONTROL.search(value):
        raise ParseError(f"{place or 'a text'} holds control characters")
    if isinstance(value, dict):
        for key, each in value.items():
            plain = key if _PLAIN_KEY.fullmatch(key) else "a key with odd characters"
            _refuse_control_characters(each, f"{place}.{plain}" if place else plain)
    elif isinstance(value, list):
        for each in value:
            _refuse_control_characters(each, place)


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers; only a line feed ends a line."""
    return ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())


def check_characters(value: object) -> None:
    """Raises ParseError where a value of JSON holds half of a character."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ParseError("half of a character (a lone surrogate)") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key)
            check_characters(item)
    elif isinstance(value, list):
        for item in value:
            check_characters(item)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ParseError("a key stands there twice")
    return found


def _constant(_: str) -> NoReturn:
    raise ParseError("NaN and infinity are not JSON")


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ParseError(f"a number has more than {_DIGITS} digits")
    return int(text)


def _finite(text: str, kind: type[float] = float) -> float:
    value = kind(text)
    if value in (float("inf"), float("-inf")):
        raise ParseError("a number is too large")
    return value


# Made once: `json.loads` would make one for each line.
_DECODERS = tuple(
    json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_constant, parse_float=floats, parse_int=_whole
    )
    for floats in (_finite, partial(_finite, kind=Number))
)


def form(pattern: str, problem: str) -> msgspec.Meta:
    """A pattern that a text must fully match, for the annotations that `convert` reads.

    `problem` is the error for a text that does not, such as "must be OWNER/NAME".
    """
    whole = rf"\A(?:{pattern})\Z"
    _FORMS[whole] = problem
    return msgspec.Meta(pattern=whole)


def convert(value: object, kind: type[_Kind], place: str = "") -> _Kind:
    """Parsed JSON or TOML as a `msgspec.Struct`; nothing is coerced.

    Raises:
        ParseError: the value does not fit. Names the key (behind `place`, that of the value in
            its file, such as "models.target"), and repeats no value and no odd name.
    """
    try:
        return msgspec.convert(value, kind, builtin_types=(datetime.date,))
    except msgspec.ValidationError as error:
        raise ParseError(_reworded(str(error), place)) from None


def refuse_unknown(table: Iterable[str], known: Collection[str], place: str = "") -> None:
    """Refuses keys that a table does not have, for dataclasses, of which msgspec ignores them."""
    for key in table:
        if key not in known:
            raise ParseError(_reworded(f"Object contains unknown field `{key}`", place))


def _reworded(message: str, place: str) -> str:
    """Rewords a message of msgspec, which may hold a name or value of the file."""
    problem, _, path = message.partition(" - at `$")
    keys = [place, *re.sub(r"\[[^]]*\]", "", path.rstrip("`")).split(".")]
    if found := re.match(
        r"Object (?:missing required|contains unknown) field `(.*)`", problem, re.S
    ):
        keys.append(found[1] if _PLAIN_KEY.fullmatch(found[1]) else "a key with odd characters")
    at = ".".join(filter(None, keys)) or "the value"
    if problem.startswith("Object missing"):
        return f"{at} is missing"
    if problem.startswith("Object contains"):
        return f"{at} is not known; remove it or correct its name"
    if problem.startswith("Invalid enum value"):
        return f"{at} is none of the words that may stand there"
    if found := re.fullmatch(r"Expected `str` matching regex '(.*)'", problem, re.S):
        # The pattern is written as Python spells a text.
        wanted = next((told for form, told in _FORMS.items() if repr(form)[1:-1] == found[1]), "")
        return f"{at} {wanted or 'has another form than it must have'}"
    if found := re.fullmatch(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)", problem):
        words = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
        return f"{at} must be {words[found[1]]} {float(found[2]):g}"
    if found := re.match(r"Expected `(\w+)", problem):
        return f"{at} must be {_KINDS.get(found[1], 'of another kind')}"
    return f"{at} is out of range" if "out of range" in problem else f"{at} is not right"


_FORMS: dict[str, str] = {}
_CONTROL = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
    "object": "a table", "array": "a list", "date": "a day without quotes, as in 2027-01-31",
}  # fmt: skip
