"""Texts to measure on: a plain text file, or JSON Lines with a `text` each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.reading.records import identifier
from capt_local.strict.files import read_bytes, utf8
from capt_local.strict.json import lines, parse_object
from capt_local.strict.problems import NotReadable, Problems


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        id: of the line; the number of the line if it has none.
        data: UTF-8, not empty.
        cut: whether it was cut on request.
        line: where it stands in its file, from 1.
    """

    id: str
    data: bytes
    cut: bool = False
    line: int = 1


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
    data = read_bytes(path, what, pipes=True)
    if not is_lines(path):
        return [whole_file(data, what, size)]
    problems, found = Problems(what), []
    for number, line in lines(data):
        try:
            value = parse_object(line)
            found.append(text_of(value, number, size))
        except NotReadable as error:
            problems.add(number, error)
        if limit is not None and len(found) == limit:
            break
    problems.settle()
    if not found:
        raise UsageError(f"{what} holds no text.")
    return found


def is_lines(path: Path) -> bool:
    """Whether a file is JSON Lines, by its name."""
    return path.suffix.lower() == ".jsonl"


def whole_file(data: bytes, what: str, size: int | None = None) -> Text:
    """A file that is one text.

    Raises:
        UsageError: it is empty or not UTF-8.
    """
    if not data:
        raise UsageError(f"{what} holds no text.")
    try:
        return text_of({"text": utf8(data)}, 1, size)
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None


def text_of(value: Mapping[str, object], number: int, size: int | None) -> Text:
    """The text of a line.

    Args:
        value: the fields of the line.
        number: of the line.
        size: the most bytes of the text that are kept.

    Raises:
        NotReadable: there is no text, or an empty one, or nothing of it would be left.
    """
    name = identifier(value["id"]) if "id" in value else str(number)
    text = value.get("text")
    if not isinstance(text, str):
        raise NotReadable('"text" must be a text' if "text" in value else 'no "text"')
    if not text:
        raise NotReadable("the text is empty")
    data = text.encode()
    if size is None or len(data) <= size:
        return Text(name, data, line=number)
    kept = data[:size].decode("utf-8", "ignore").encode()
    if not kept:
        raise NotReadable(f"the first character is longer than {size} bytes; allow more")
    return Text(name, kept, cut=True, line=number)
