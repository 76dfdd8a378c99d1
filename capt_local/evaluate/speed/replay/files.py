"""Traces as JSON Lines: a line about the run, and a line for each answer.

Read strictly: a trace decides what a measurement means, so nothing in it is guessed or left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.speed.replay.trace import (
    LONGEST_DRAFT,
    MOST_STEPS,
    VERSION,
    Offer,
    Place,
    Trace,
    Walked,
)
from capt_local.strict.files import read_bytes
from capt_local.strict.json import lines, parse_object
from capt_local.strict.problems import NotReadable, Problems

_DIGITS = 4
_HEAD = {"capt_trace", "source"}
_ANSWER = {"prompt", "places"}
_PLACE = {"gated", "own", "sure", "offers"}
_OFFER = {"first", "grades", "right", "plausible"}
_ROLES = 16
_SOURCES = 16


def as_lines(trace: Trace) -> str:
    """A trace as the text of a file."""
    head = {"capt_trace": VERSION, "source": trace.source}
    rows = (head, *map(_answer_object, trace.answers))
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def read_trace(path: Path, what: str) -> Trace:
    """Reads a trace.

    Args:
        path: of the file.
        what: what errors call it.

    Raises:
        UsageError: it cannot be read, or is not as `as_lines` writes it (with the line's number).
    """
    problems, answers = Problems(what), list[Walked]()
    rows = list(lines(read_bytes(path, what)))
    if not rows:
        problems.fail("it is empty")
    try:
        source = _head(parse_object(rows[0][1]))
    except (NotReadable, UsageError) as error:
        problems.fail(f"line {rows[0][0]}: {_said(error)}")
    for number, row in rows[1:]:
        try:
            answers.append(_answer(parse_object(row)))
        except (NotReadable, UsageError) as error:
            problems.add(number, _said(error))
    problems.settle()
    if not answers:
        problems.fail("it holds no answer")
    return Trace(source, tuple(answers))


def _said(error: Exception) -> str:
    return str(error).rstrip(".")


def _answer_object(answer: Walked) -> dict[str, object]:
    return {
        "prompt": dict(answer.prompt),
        "places": [
            {
                "gated": place.gated,
                "own": place.own,
                "sure": round(place.sure, _DIGITS),
                "offers": {name: _offer_object(offer) for name, offer in place.offers.items()},
            }
            for place in answer.places
        ],
    }


def _offer_object(offer: Offer) -> dict[str, object]:
    return {
        "first": offer.first,
        "grades": "".join(map(str, offer.grades)),
        "right": offer.right,
        "plausible": offer.plausible,
    }


def _head(value: Mapping[str, object]) -> str:
    if "capt_trace" not in value:
        raise NotReadable("this is no trace of capt-local bench")
    if value["capt_trace"] != VERSION:
        raise NotReadable(f"this version reads traces of version {VERSION}")
    _keys(value, _HEAD)
    source = value["source"]
    if not isinstance(source, str) or not source.isprintable() or not 1 <= len(source) <= 64:
        raise NotReadable('"source" must be 1 to 64 printable characters')
    return source


def _answer(value: Mapping[str, object]) -> Walked:
    _keys(value, _ANSWER)
    prompt = _table(value["prompt"], "prompt", _ROLES)
    places = value["places"]
    if not isinstance(places, list) or len(places) > MOST_STEPS:
        raise NotReadable(f'"places" must be a list of at most {MOST_STEPS}')
    counts = {role: _whole(count, "prompt") for role, count in prompt.items()}
    return Walked(counts, tuple(_place(place) for place in places))


def _place(value: object) -> Place:
    found = _table(value, "places", len(_PLACE))
    _keys(found, _PLACE)
    offers = _table(found["offers"], "offers", _SOURCES)
    sure = found["sure"]
    if isinstance(sure, bool) or not isinstance(sure, int | float):
        raise NotReadable('"sure" must be a number')
    return Place(
        gated=_truth(found["gated"], "gated"),
        own=_truth(found["own"], "own"),
        sure=float(sure),
        offers={name: _offer(offer) for name, offer in offers.items()},
    )


def _offer(value: object) -> Offer:
    found = _table(value, "offers", len(_OFFER))
    _keys(found, _OFFER)
    grades = found["grades"]
    if not isinstance(grades, str) or not grades.isascii() or not grades.isdigit():
        raise NotReadable('"grades" must be digits')
    if len(grades) > LONGEST_DRAFT:
        raise NotReadable(f"a draft has 1 to {LONGEST_DRAFT} tokens")
    return Offer(
        grades=tuple(map(int, grades)),
        right=_whole(found["right"], "right"),
        plausible=_whole(found["plausible"], "plausible"),
        first=_whole(found["first"], "first"),
    )


def _keys(value: Mapping[str, object], wanted: Iterable[str]) -> None:
    if set(value) != set(wanted):
        raise NotReadable(f"the keys must be {', '.join(sorted(wanted))}")


def _table(value: object, key: str, most: int) -> Mapping[str, object]:
    if not isinstance(value, dict) or len(value) > most:
        raise NotReadable(f'"{key}" must hold objects of at most {most} keys')
    return value


def _whole(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise NotReadable(f'"{key}" must be a whole number')
    return value


def _truth(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise NotReadable(f'"{key}" must be true or false')
    return value
