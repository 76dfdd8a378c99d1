"""JSON in which everything means one thing: no key twice, no NaN, no half of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

from capt_local.strict.files import utf8
from capt_local.strict.problems import NotReadable

DEEPEST = 64  # objects and lists inside each other
_DIGITS = 1000  # of a whole number; reading takes the square of their count
# The one way in which JSON can spell half of a character.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Number(float):
    """A number with a point or an exponent, which as text is what was written: 4.10, 0.00005."""

    __slots__ = ("_written",)
    _written: str

    def __new__(cls, written: str) -> Number:
        """The number that a text spells."""
        found = super().__new__(cls, written)
        found._written = written
        return found

    def __str__(self) -> str:
        """What was written."""
        return self._written


def parse_json(data: bytes, *, as_written: bool = False) -> object:
    """Bytes as JSON: no key twice, no NaN or infinity, no half of a character.

    Args:
        data: of the text.
        as_written: gives numbers that are not whole as `Number`, for who prints them.

    Raises:
        NotReadable: they are not, or are nested too deeply.
    """
    text = utf8(data)
    value = load(text, as_written=as_written)
    if _SURROGATE.search(text):
        check_characters(value)
    return value


def parse_object(data: bytes, *, as_written: bool = False) -> dict[str, object]:
    """The same for bytes that are to be an object.

    Raises:
        NotReadable: they are not.
    """
    value = parse_json(data, as_written=as_written)
    if not isinstance(value, dict):
        raise NotReadable("not a JSON object")
    return value


def load(text: str, *, as_written: bool = False) -> object:
    """A text as JSON; it may spell halves of characters.

    Raises:
        NotReadable: it is not, or is nested too deeply.
    """
    try:
        value: object = _DECODERS[as_written].decode(text)
    except RecursionError:
        raise NotReadable("nested too deeply") from None
    except ValueError:
        # A message of the JSON reader would hold a part of the line.
        raise NotReadable("not JSON") from None
    # Fewer brackets than that cannot be deep; to count them is quicker than to walk.
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    return value


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers; only a line feed ends a line."""
    return ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())


def check_characters(value: object) -> None:
    """Refuses texts in a value of JSON that are no UTF-8.

    Raises:
        NotReadable: there is half of a character.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotReadable("half of a character (a lone surrogate)") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key)
            check_characters(item)
    elif isinstance(value, list):
        for item in value:
            check_characters(item)


def _check_depth(value: object) -> None:
    outer = [value]
    for _ in range(DEEPEST + 1):
        outer = [inner for each in outer for inner in _inside(each)]
    if outer:
        raise NotReadable("nested too deeply")


def _inside(value: object) -> list[object]:
    """What stands one level deeper: something in an empty list too, which is a level."""
    if isinstance(value, dict):
        return list(value.values()) or [None]
    return (value or [None]) if isinstance(value, list) else []


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotReadable("a key stands there twice")
    return found


def _constant(_: str) -> NoReturn:
    raise NotReadable("NaN and infinity are not JSON")


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise NotReadable(f"a number has more than {_DIGITS} digits")
    return int(text)


def _finite(text: str, kind: type[float] = float) -> float:
    value = kind(text)
    if value in (float("inf"), float("-inf")):
        raise NotReadable("a number is too large")
    return value


# Made once: `json.loads` would make one for each line.
_DECODERS = tuple(
    json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_constant, parse_float=floats, parse_int=_whole
    )
    for floats in (_finite, partial(_finite, kind=Number))
)
