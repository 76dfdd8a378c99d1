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


def read_texts(path: Path, *, limit: int | None = None, size: int | None = None) -> list[Text]:
    """Reads the texts of a file.

    Args:
        path: `.jsonl`: an object with `text` (and `id`) a line; anything else is one text.
        limit: only so many texts.
        size: only so many bytes of each (never a part of a character).

    Raises:
        UsageError: the file cannot be read, or a line is not as it should be (with its number).
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path.name} is larger than {_LARGEST >> 20} MiB.")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path.name}: {error.strerror or 'cannot be read'}.") from None
    if path.suffix == ".jsonl":
        lines = [line for line in enumerate(data.split(b"\n"), 1) if line[1].strip()]
        texts = [_line(path.name, number, line) for number, line in lines[:limit]]
    else:
        texts = [Text("1", _checked(path.name, 1, data))]
    if not texts:
        raise UsageError(f"{path.name} holds no text.")
    return [text if size is None else _shortened(text, size) for text in texts]


def _line(name: str, number: int, line: bytes) -> Text:
    # A message of the JSON reader would hold a part of the line.
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{name}, line {number}: not JSON.") from None
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        raise UsageError(f'{name}, line {number}: no "text".')
    try:
        data = item["text"].encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}, line {number}: half of a character.") from None
    return Text(str(item.get("id", number)), _checked(name, number, data))


def _checked(name: str, number: int, data: bytes) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}.") from None
    if not data:
        raise UsageError(f"{name}, line {number}: the text is empty.")
    return data


def _shortened(text: Text, size: int) -> Text:
    if len(text.data) <= size:
        return text
    kept = text.data[:size].decode("utf-8", "ignore").encode()
    return Text(text.id, kept, cut=True)
