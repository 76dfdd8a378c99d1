"""Results of items, and the two files that they go into as they are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from capt_local.errors import UsageError
from capt_local.evaluate.metrics import Outcome
from capt_local.line_file import LineFile
from capt_local.strict_json import NotReadable, convert, parse_object

# Why an item failed, as it stands in journals and tables.
DOES_NOT_FIT = "does not fit"
REFUSED = "refused"
NOT_FINITE = "not finite"
MODEL = "model error"
# These would fail again in the same way; the others are tried again when a run is resumed.
LASTING = frozenset({DOES_NOT_FIT, REFUSED})
_MARK, _VERSION = "capt_local_eval", 2
_RESULTS = "The results file (--results)"
_SAMPLES = "The file of answers (--log-samples)"
_SAMPLE_START = b'{"task":'


class Result(msgspec.Struct, frozen=True):
    """One item under one method, as a line of the journal; holds no text."""

    task: str
    method: str
    item: str  # its id
    outcome: Outcome | None = None  # None when it failed
    failed: str = ""  # why
    tokens: int = 0  # of answer, weighed choices or text, in the leading model's tokens
    decoded: int = 0  # by all models together, prompts included
    seconds: float = 0.0
    cut: bool = False  # whether the input was cut on request
    unfinished: bool = False  # whether the limit on its length ended the answer

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, method and item: there is one result for each."""
        return self.task, self.method, self.item


@dataclass(frozen=True, slots=True)
class Finished:
    """An item that is done under a method, with its texts."""

    result: Result
    answer: str = ""  # what was written; "" for prose and where choices are weighed
    read: str | None = None  # what was read from it, or the choice
    logps: tuple[float, ...] = ()  # of choices that were weighed, in nats
    problem: str = ""  # why it failed; holds no text of the item


class ResultsFile:
    """The journal of results: each is on the disk before the next item begins.

    The first line is a fingerprint of everything that decides a result, so that only the same run
    goes on with the file; the others hold ids, places of choices and figures, no text. `done` are
    the results of earlier runs, `fingerprint` is theirs; None for a new file.
    """

    def __init__(self, path: Path) -> None:
        self.fingerprint: dict[str, Any] | None = None
        self.done: list[Result] = []
        self._whole = 0
        self._file = _opened(path, _RESULTS)
        try:
            for number, line in enumerate(self._file.lines()):
                if line.endswith(b"\n"):
                    self._whole += len(line)
                    self._read(number, line)
                elif number == 0 and not f'{{"{_MARK}": '.encode().startswith(line[:20]):
                    raise _not_ours()
        except BaseException:
            self.close()
            raise

    def _read(self, number: int, line: bytes) -> None:
        try:
            value = parse_object(line)
            if number:
                self.done.append(convert(value, Result))
                return
            if _MARK not in value:
                raise _not_ours()
            if value[_MARK] != _VERSION:
                raise UsageError(f"{_RESULTS} was written by another version. Name a new file.")
            self.fingerprint = convert(value.get("fingerprint"), dict[str, Any])
        except NotReadable:
            if number == 0:
                raise _not_ours() from None
            raise UsageError(
                f"{_RESULTS}, line {number + 1}: not a result. Name a new file."
            ) from None

    def begin(self, fingerprint: Mapping[str, Any], differences: Callable[..., str]) -> None:
        """Writes the fingerprint of a new file; refuses an old file of another run."""
        ours = json.loads(json.dumps(fingerprint))
        if self.fingerprint is not None and (names := differences(self.fingerprint, ours)):
            raise UsageError(
                f"{_RESULTS} is of a run with other settings; what differs: {names}. "
                "Use the same settings, or name a new file."
            )
        if self._whole < self._file.size:
            self._file.cut(self._whole)  # the half line of a kill
        if self.fingerprint is None:
            self._file.append(json.dumps({_MARK: _VERSION, "fingerprint": ours}).encode() + b"\n")

    def append(self, result: Result) -> None:
        """Adds a result; it is on the disk when this returns. Raises DiskFailed."""
        self._file.append(msgspec.json.encode(result) + b"\n")

    def close(self) -> None:
        self._file.close()


class _SampleLine(msgspec.Struct):
    """A line of the file of answers."""

    task: str
    method: str
    id: str
    failed: str
    answer: str
    read: str | None
    logps: tuple[float | None, ...]


class SampleLog:
    """The file of answers: a line for each item and method. Holds text.

    Unless the run is `resumed`, the file must not hold anything yet.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self._file = _opened(path, _SAMPLES)
        # An answer of an earlier run is not written twice, unless it failed and is tried again.
        self._there: set[tuple[str, str, str]] = set()
        whole = 0
        try:
            for line in self._file.lines():
                if line.endswith(b"\n"):
                    old = convert(parse_object(line), _SampleLine)
                    self._there |= set() if old.failed else {(old.task, old.method, old.id)}
                    whole += len(line)
                elif not line.startswith(_SAMPLE_START[: len(line)]):
                    resumed = False
        except NotReadable:
            resumed = False
        if self._file.size and not resumed:
            self.close()
            raise UsageError(f"{_SAMPLES} holds something already. Name a new file.")
        if whole < self._file.size:
            self._file.cut(whole)

    def append(self, finished: Finished) -> None:
        """Adds the answer to an item. Raises DiskFailed."""
        result = finished.result
        if result.key not in self._there:
            line = _SampleLine(
                *result.key, result.failed, finished.answer, finished.read, finished.logps
            )
            self._file.append(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()


def _opened(path: Path, what: str) -> LineFile:
    try:
        return LineFile(path, what)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or "no access"
        raise UsageError(f"{what} cannot be written: {reason}.") from None


def _not_ours() -> UsageError:
    return UsageError(f"{_RESULTS} is not of capt-local eval. Nothing was written; name another.")
