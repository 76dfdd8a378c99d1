"""Which choice an answer names, where models say more than they were asked for.

Read from the surest sign to the weakest; an answer that names two choices, or denies one, names
none. Nothing is guessed: no answer is told as such.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from capt_local.evaluate.tasks.items import folded

_QUOTES = "\"'`*_“”‘’«»"
_AROUND = _QUOTES + " \t.,:;!?()[]"
_LEAD = re.compile(
    r"^(?:the\s+)?(?:(?:best|correct|final)\s+)?(?:answer|option|choice)\b\W*(?:is\b)?"
)
_LETTER_LEAD = r"(?:answer|option|choice)\b(?:\s+is)?\W*"
_OR = r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*"
_DENIAL = re.compile(r"(?:\b(?:not|never|no|neither|nor|cannot|without)|n['’]t)\s+(?:\w+\s+)?$")
LETTERS = string.ascii_uppercase


def after_marker(answer: str, marker: str) -> str | None:
    """What stands behind the last marker, whatever its capitals; None where there is none."""
    found = list(re.finditer(re.escape(marker), answer, re.IGNORECASE))
    return answer[found[-1].end() :] if found else None


def named_choice(answer: str, choices: Sequence[str], *, letters: bool = False) -> str | None:
    """The choice that an answer names.

    Args:
        answer: of a model.
        choices: distinct.
        letters: whether the choices were shown with letters A, B, C, ... that may name them.

    Returns:
        The choice, by the first of these that holds: the answer is the choice; it begins with the
        choice as a word of its own; it has a letter in the form of an answer (as "(B)", "B." or
        "answer: B"); its first line with any choice in it has one alone, not denied. Else None.
    """
    if all(len(choice) == 1 for choice in choices):
        return _lettered(answer, {choice: choice for choice in choices}) or _whole(answer, choices)
    found = _whole(answer, choices) or _beginning(answer, choices)
    if found is None and letters:
        found = _lettered(answer, dict(zip(LETTERS, choices, strict=False)))
    return found or _within(answer, choices)


def vote(answers: Sequence[str | None]) -> str | None:
    """What most answers say; of those with as many, the one that was said first.

    Answers are the same but for capitals and spaces; None does not vote.
    """
    said = [answer for answer in answers if answer is not None]
    if not said:
        return None
    counts = Counter(folded(answer) for answer in said)
    # `max` takes the first of equals, and `said` is in the order in which they came.
    return max(said, key=lambda answer: counts[folded(answer)])


def _whole(answer: str, choices: Sequence[str]) -> str | None:
    bare = folded(answer.strip().strip(_AROUND))
    return next((choice for choice in choices if folded(choice) == bare), None)


def _beginning(answer: str, choices: Sequence[str]) -> str | None:
    text = folded(answer).lstrip(_AROUND)
    text = _LEAD.sub("", text).lstrip(_AROUND)
    one = _pattern(choices).pattern
    match = re.match(one, text)
    if match is None or re.match(rf"{_OR}{one}\s*(?:$|[,/.;?]|or\b)", text[match.end() :]):
        return None
    return _of(match.group(), choices)


def _within(answer: str, choices: Sequence[str]) -> str | None:
    pattern = _pattern(choices)
    for line in answer.splitlines():
        text = folded(line)
        found = list(pattern.finditer(text))
        if found:
            named = {match.group() for match in found}
            denied = any(_DENIAL.search(text[: match.start()]) for match in found)
            return None if denied or len(named) > 1 else _of(named.pop(), choices)
    return None


def _lettered(answer: str, choices: dict[str, str]) -> str | None:
    """The choice by its letter; a bare "A" before a word is an article, not an answer."""
    one = f"[{re.escape(''.join(choices))}]"
    text = answer.strip().lstrip(_QUOTES + " ")
    if len(bare := text.strip(_AROUND)) == 1:
        # Alone, a letter means what it is, be it small.
        return choices.get(bare, choices.get(bare.upper()))
    no_other = rf"(?!\W?{_OR}\W?{one}\b)"
    forms = (
        rf"^\(?({one})(?:[.):,]|\s*$|\s*\n){no_other}",
        rf"(?i:{_LETTER_LEAD})\(?(?!A [a-z])({one})\b{no_other}",
        rf"\(({one})\)",
    )
    for form in forms:
        named = {match.group(1) for match in re.finditer(form, text)}
        if named:
            return choices[named.pop()] if len(named) == 1 else None
    return None


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any choice as words of its own; where one is a part of another, the longer one."""
    longest = sorted((folded(choice) for choice in choices), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


def _of(found: str, choices: Sequence[str]) -> str:
    return next(choice for choice in choices if folded(choice) == found)
