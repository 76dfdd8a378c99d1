"""Texts to measure on: a plain text file, or JSON Lines with a `text` each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from capt_local.errors import UsageError

_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        id: of the line; the number of the line if it has none.
        data: UTF-8, not empty.
        cut: whether it was cut on request.
    """

    id: str
    data: bytes
    cut: bool = False


def read_texts(
    path: Path, what: str, *, limit: int | None = None, size: int | None = None
) -> list[Text]:
    """Reads the texts of a file.

    Args:
        path: `.jsonl`: an object with `text` (and `id`) a line; anything else is one text.
        what: what errors call the file; its name may be a patient's.
        limit: only so many texts.
        size: only so many bytes of each (never a part of a character).

    Raises:
        UsageError: the file cannot be read, or a line is not as it should be (with its number).
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{what} is larger than {_LARGEST >> 20} MiB.")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {error.strerror or 'no access'}.") from None
    if path.suffix == ".jsonl":
        lines = [line for line in enumerate(data.split(b"\n"), 1) if line[1].strip()]
        texts = {number: _line(what, number, line) for number, line in lines[:limit]}
    else:
        texts = {1: Text("1", _checked(what, 1, data))}
    if not texts:
        raise UsageError(f"{what} holds no text.")
    return [_shortened(what, number, text, size) for number, text in texts.items()]


def _line(what: str, number: int, line: bytes) -> Text:
    # A message of the JSON reader would hold a part of the line.
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{what}, line {number}: not JSON.") from None
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        raise UsageError(f'{what}, line {number}: no "text".')
    try:
        data = item["text"].encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what}, line {number}: half of a character.") from None
    return Text(str(item.get("id", number)), _checked(what, number, data))


def _checked(what: str, number: int, data: bytes) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}: not UTF-8 at byte {error.start}.") from None
    if not data:
        raise UsageError(f"{what}, line {number}: the text is empty.")
    return data


def _shortened(what: str, number: int, text: Text, size: int | None) -> Text:
    if size is None or len(text.data) <= size:
        return text
    kept = text.data[:size].decode("utf-8", "ignore").encode()
    if not kept:
        raise UsageError(
            f"{what}, line {number}: the first character is longer than {size} bytes; allow more."
        )
    return Text(text.id, kept, cut=True)
