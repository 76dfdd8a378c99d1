"""JSON in which everything means one thing: no key twice, no NaN, no half of a character."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import NoReturn, TypeVar

import msgspec

from capt_local.strict.files import utf8
from capt_local.strict.problems import NotReadable

_Kind = TypeVar("_Kind")
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


def form(pattern: str, problem: str) -> msgspec.Meta:
    """A pattern that texts must match whole, for the annotations that `convert` reads.

    Args:
        pattern: a regular expression.
        problem: what an error says of a text that does not match, such as "must be OWNER/NAME".
    """
    whole = rf"\A(?:{pattern})\Z"
    _FORMS[whole] = problem
    return msgspec.Meta(pattern=whole)


def convert(value: object, kind: type[_Kind], place: str = "") -> _Kind:
    """Parsed JSON or TOML as a `msgspec.Struct`, with errors that repeat no value and no odd name.

    Args:
        value: as parsed.
        kind: the structure; its constraints are checked, nothing is coerced.
        place: of the value in its file, such as "models.target"; empty for the top.

    Raises:
        NotReadable: the value does not fit; names the key.
    """
    try:
        return msgspec.convert(value, kind, builtin_types=(datetime.date,))
    except msgspec.ValidationError as error:
        raise NotReadable(_told(str(error), place)) from None


def _told(message: str, place: str) -> str:
    """A message of msgspec in our words: it may hold a name or value of the file."""
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
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
    "object": "a table", "array": "a list", "date": "a day without quotes, as in 2027-01-31",
}  # fmt: skip
