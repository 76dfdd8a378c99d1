"""A source as an index of word positions, to find values, numbers and statements in it.

Texts are compared as normalised words: numbers in digits, units and spellings unified, stems.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache, lru_cache
from importlib import resources
from typing import Annotated, NamedTuple

import msgspec

from capt_local.documents import Document

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
    """A word of a text: its normalised form, its span in characters, whether it is a number."""

    key: str
    start: int
    end: int
    number: bool = False


def _inverse(table: str) -> dict[str, str]:
    return {word: name for name, text in _LISTS[table].items() for word in text.split()}


UNITS, MONTHS, _SAME = _inverse("units"), _inverse("months"), _inverse("same")


@cache
def drugs() -> dict[str, str]:
    """Names of drugs, each with its generic name."""
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


Span = tuple[int, int]

# Measured on aci-note.valid (docs/results.md).
FUZZY = 82.0  # of 100, of a value that is not there as it is
SUPPORTED = 0.29  # score of a statement
_WINDOW = 60  # words that a statement may be drawn from
_NEAR = 15  # words around a number that say what it is a number of
_PRIOR, _PRIOR_WEIGHT = 0.5, 1.0  # of the score of a statement of no words
_LONGEST_FUZZY = 400  # characters of a value
_MEASURES = frozenset(UNITS.values()) - {"pack", "tablet", "puff"}


class Match(StrEnum):
    """How a fact was found."""

    EXACT = "exact"
    NORMALISED = "normalised"  # other case, spacing, hyphens, units, or numbers in words
    FUZZY = "fuzzy"
    UNSUPPORTED = "unsupported"


Place = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """A value or a part of a statement, and its span in the source; positions in characters."""

    kind: str  # value, number, date, drug, side or negation
    text: str
    start: Place
    end: Place
    match: Match
    path: str = ""  # of a value in a structured answer, as `medications[0].dose`
    source: tuple[Place, Place] | None = None
    page: Place | None = None  # of the source, from 1

    @property
    def supported(self) -> bool:
        return self.match is not Match.UNSUPPORTED


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence or line of an answer, and the span of the source with most of its words.

    `score` averages the weighted shares of its words in the source and within one such span.
    """

    text: str
    start: Place
    end: Place
    score: float
    supported: bool
    source: tuple[Place, Place] | None = None
    page: Place | None = None


class Source:
    """The text that answers are checked against."""

    def __init__(self, document: Document) -> None:
        self.document, self.text = document, document.text
        self.words = words(self.text)
        self.starts = [word.start for word in self.words]
        self.places: dict[str, list[int]] = defaultdict(list)  # positions by stem
        self.keys: dict[str, list[int]] = defaultdict(list)  # and by key
        for place, word in enumerate(self.words):
            self.keys[word.key].append(place)
            if not word.number:
                self.places[stem(word.key)].append(place)
        self.drugs: dict[str, list[int]] = defaultdict(list)  # by the generic name
        for key in self.keys.keys() & drugs().keys():
            self.drugs[drugs()[key]] += self.keys[key]

    def span(self, first: int, last: int) -> Span:
        """Characters from one word to another."""
        return self.words[first].start, self.words[last].end

    def page(self, span: Span | None) -> int | None:
        """The page on which a span begins."""
        return None if span is None else self.document.page(span[0])

    def statement(self, statement: Sequence[Word]) -> tuple[float, Span | None]:
        """The score of a statement, and the span with most of its words close together."""
        weights = {
            key: 1.3 if number else 0.5 if key in COMMON else 1.0
            for key, number in {
                (w.key if w.number else stem(w.key), w.number) for w in content(statement)
            }
        }
        total = sum(weights.values())
        hits = sorted(
            (place, key)
            for key in weights
            for place in (self.keys if key[0].isdigit() else self.places).get(key, [])
        )
        covered = sum(weights[key] for key in {key for _, key in hits})
        best, at = self._densest(hits, weights)
        score = (0.5 * covered + 0.5 * best + _PRIOR * _PRIOR_WEIGHT) / (total + _PRIOR_WEIGHT)
        return score, at

    def _densest(
        self, hits: Sequence[tuple[int, str]], weights: dict[str, float]
    ) -> tuple[float, Span | None]:
        """The most weight within a window of words, each counted once, and its span."""
        counts: dict[str, int] = defaultdict(int)
        best, found, weight, begin = 0.0, None, 0.0, 0
        for end, (place, key) in enumerate(hits):
            counts[key] += 1
            weight += weights[key] if counts[key] == 1 else 0.0
            while hits[begin][0] < place - _WINDOW or counts[hits[begin][1]] > 1:
                left = hits[begin][1]
                counts[left] -= 1
                weight -= weights[left] if not counts[left] else 0.0
                begin += 1
            if weight > best + 1e-9:
                best, found = weight, self.span(hits[begin][0], hits[end][0])
        return best, found

    def number(self, statement: Sequence[Word], at: int) -> tuple[Match, Span | None]:
        """The span of a number of a statement; of several, that with the most similar context.

        A number with another unit does not match.
        """
        key, unit = statement[at].key, unit_at(statement, at)
        context = {stem(word.key) for word in content(statement) if not word.number}
        best, found = -1.0, None
        for place in self.keys.get(key, []):
            if not self.words[place].number:
                continue
            here = unit_at(self.words, place)
            if unit and here and here != unit:
                continue
            score = self.proximity(place, context) + (0.5 if unit == here else 0.0)
            if score > best:
                best, found = score, place
        if found is None:
            return Match.UNSUPPORTED, None
        last = found + (unit is not None and unit == unit_at(self.words, found))
        written = self.text[self.words[found].start : self.words[found].end]
        return Match.EXACT if written == key else Match.NORMALISED, self.span(found, last)

    def proximity(self, place: int, stems: Iterable[str]) -> float:
        """How close words are to a position: a sum of 1 (common words 0.5) less the distance."""
        score = 0.0
        for key in stems:
            places = self.places.get(key)
            if places:
                i = bisect.bisect_left(places, place)
                near = min(abs(other - place) for other in places[max(0, i - 1) : i + 1])
                weight = 0.5 if key in COMMON else 1.0
                score += weight * max(0.0, 1 - near / _NEAR)
        return score

    def value(self, value: str, near: Span | None) -> tuple[Match, Span | None]:
        """The span of a non-empty value; of several, the nearest to `near`."""
        pattern = re.escape(value)
        pattern = (r"(?<!\w)" if value[0].isalnum() else "") + pattern
        pattern += r"(?!\w)" if value[-1].isalnum() else ""
        if exact := [match.span() for match in re.finditer(pattern, self.text)]:
            return Match.EXACT, nearest(exact, near)
        found = words(value)
        if found and (places := self._run([word.key for word in found])):
            return Match.NORMALISED, nearest([self.span(*place) for place in places], near)
        if 4 <= len(value) <= _LONGEST_FUZZY and found:
            from rapidfuzz import fuzz  # most answers need none

            similar = fuzz.partial_ratio_alignment(
                value.casefold(), self.text.casefold(), score_cutoff=FUZZY
            )
            if similar is not None and len(self.text) == len(self.text.casefold()):
                return self._whole_words(value, similar.dest_start, similar.dest_end)
        return Match.UNSUPPORTED, None

    def _run(self, keys: Sequence[str]) -> list[tuple[int, int]]:
        """The ranges of consecutive words with these keys."""
        length = len(keys)
        return [
            (place, place + length - 1)
            for place in self.keys.get(keys[0], [])
            if [word.key for word in self.words[place : place + length]] == list(keys)
        ]

    def _whole_words(self, value: str, start: int, end: int) -> tuple[Match, Span | None]:
        """Extends a fuzzy match to whole words; no match if its numbers differ."""
        from rapidfuzz import fuzz

        first = max(0, bisect.bisect_right(self.starts, start) - 1)
        last = max(first, bisect.bisect_left(self.starts, end) - 1)
        if first < last and self.words[first].end <= start:
            first += 1
        numbers = [word.key for word in words(value) if word.number]
        here = [word.key for word in self.words[first : last + 1] if word.number]
        span = self.span(first, last)
        ratio = fuzz.ratio(value.casefold(), self.text[slice(*span)].casefold())
        if numbers != here or ratio < FUZZY - 3:
            return Match.UNSUPPORTED, None
        return Match.FUZZY, span


def nearest(spans: Sequence[Span], near: Span | None) -> Span:
    """The span nearest to `near`; the first one if `near` is None."""
    if near is None:
        return spans[0]
    return min(spans, key=lambda span: max(span[0] - near[1], near[0] - span[1]))


def unit_at(statement: Sequence[Word], at: int) -> str | None:
    """The unit after a number; None if there is none, or only a countable such as tablets."""
    unit = statement[at + 1].key if at + 1 < len(statement) else ""
    return unit if unit in _MEASURES else None


def content(statement: Iterable[Word]) -> list[Word]:
    """The content words: numbers, and words that are no stop words."""
    return [
        word for word in statement if word.number or (word.key not in STOP and len(word.key) > 1)
    ]
