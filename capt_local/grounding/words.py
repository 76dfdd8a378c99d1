"""Text as comparable words: numbers in digits, units and spellings in one form, stems."""

from __future__ import annotations

import re
import tomllib
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

_DATA = resources.files("capt_local") / "data"
_LISTS = tomllib.loads((_DATA / "words.toml").read_text("utf-8"))
_ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ed", "es", "s", "ly", "al", "ic")
_WORD = re.compile(
    r"(?P<number>(?<![\w.])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|(?<![a-zA-Z\d.])(?<![a-zA-Z]-)\d+(?:\.\d+)?"
    r"|(?<![\w.])\.\d+)(?:(?:st|nd|rd|th)\b)?"
    r"|(?P<word>[^\W\d_]+(?:['\u2019][^\W\d_]+)?\d*|\d+(?:\.\d+)?)|(?P<sign>[%\u00b0])"
)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_VALUES = {
    name: value if value < 20 else 10 * (value - 18)
    for value, name in enumerate(_NUMBERS.split(" "))
}
_ORDINALS = {
    **{f"{name}th": value for name, value in _VALUES.items() if value < 20},
    **{f"{name[:-1]}ieth": value for name, value in _VALUES.items() if value >= 20},
    **{"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12},
}
_ARTICLES = frozenset(("a", "an"))
_VALUES |= dict.fromkeys(_ARTICLES, 1)
# More often no numbers; alone they stay words.
_ALONE = frozenset(("one", "second", "first", "third"))
_TIMES = frozenset(("hour", "day", "week", "month", "year"))
_SPELLED = _VALUES.keys() | _ORDINALS.keys()


class Word(NamedTuple):
    """A word of a text: how it is compared, its characters, and whether it is a number."""

    key: str
    start: int
    end: int
    number: bool = False


def _inverse(table: str) -> dict[str, str]:
    return {word: name for name, text in _LISTS[table].items() for word in text.split()}


UNITS, MONTHS, _SAME = _inverse("units"), _inverse("months"), _inverse("same")


@cache
def drugs() -> dict[str, str]:
    """Names of drugs, each with the name that stands for it: the generic one of a brand."""
    lines = (_DATA / "drugs.txt").read_text("utf-8").splitlines()
    names = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: each[0] for each in names for name in each}


def word_list(name: str) -> frozenset[str]:
    """A list of `data/words.toml`."""
    return frozenset(_LISTS[name].split())


@lru_cache(1 << 14)
def stem(word: str) -> str:
    """A word without a common ending, in one of its spellings."""
    word = _SAME.get(word, word)
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def stems(name: str) -> frozenset[str]:
    """The stems of a list."""
    return frozenset(map(stem, word_list(name)))


STOP, COMMON = word_list("stop"), stems("common")


def words(text: str) -> list[Word]:
    """The words of a text, in order; a number in words is one word, in digits."""
    found: list[Word] = []
    spelled = False
    for match in _WORD.finditer(text):
        kind = match.lastgroup
        if kind == "number":
            found.append(Word(_canonical(match["number"]), match.start(), match.end(), True))
        else:
            key = match[0].casefold().replace("\u2019", "'")
            spelled = spelled or key in _SPELLED
            found.append(Word(UNITS.get(key, key), match.start(), match.end()))
    return _with_numbers(text, found) if spelled else found


def _canonical(number: str) -> str:
    whole, _, part = number.replace(",", "").partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


def _with_numbers(text: str, found: list[Word]) -> list[Word]:
    made: list[Word] = []
    at = 0
    while at < len(found):
        word = found[at]
        value, used = _number(text, found, at) if word.key in _SPELLED else ("", 0)
        if used == 1 and word.key in _ALONE | _ARTICLES:
            # A number only in front of a unit: "one week", "a year"; "second" is none.
            behind = found[at + 1].key if at + 1 < len(found) else ""
            used = word.key != "second" and behind in _TIMES
        if used:
            made.append(Word(value, word.start, found[at + used - 1].end, True))
            at += used
        else:
            made.append(word)
            at += 1
    return made


def _number(text: str, found: list[Word], at: int) -> tuple[str, int]:
    """A number in words that begins here, in digits, and how many words it takes."""
    total = part = used = 0
    previous, end, decimals = "", found[at].start, ""
    for word in found[at : at + 9]:
        key = word.key
        value = _VALUES.get(key, _ORDINALS.get(key))
        if text[end : word.start].strip(" \n-"):
            break
        if decimals:
            if value is None or value > 9:
                break
            decimals += str(value)
        elif key == "point" and used:
            decimals = "."
        elif value is None and used and key in ("hundred", "thousand"):
            part = max(part, 1) * (100 if key == "hundred" else 1000)
            if key == "thousand":
                total, part = total + part, 0
        elif value is None or previous in _ORDINALS:
            break
        elif not used or previous in ("hundred", "thousand"):
            part += value
        elif value < 10 and part % 10 == 0 and part % 100 >= 20:
            part += value  # "twenty five"
        elif part < 10 and value >= 20 and used == 1:
            part = 100 * part + value  # "one twenty", as pressures are read out
        else:
            break
        used, previous, end = used + 1, key, word.end
    if decimals == ".":  # "at one point"
        used, decimals = used - 1, ""
    return _canonical(f"{total + part}{decimals}"), used
