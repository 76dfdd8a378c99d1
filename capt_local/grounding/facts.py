"""The facts of an answer, and which of them a source supports."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from capt_local.documents import Document
from capt_local.grounding.source import (
    COMMON,
    MONTHS,
    STOP,
    SUPPORTED,
    Fact,
    Match,
    Source,
    Span,
    Statement,
    Word,
    content,
    drugs,
    stem,
    stems,
    unit_at,
    word_list,
    words,
)

_SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bDr\.)(?<!\bMrs\.)(?<!\bMr\.)(?<!\bMs\.)\s+(?=[A-Z0-9])")
_MARK = re.compile(r"[\s\u2022*\u2013-]*(?:\d{1,2}[.)]\s+)?")
_LABEL = re.compile(r"[A-Za-z][A-Za-z ,/&-]{1,58}:\s*")
_DATE = re.compile(r"(?<![\w/.-])(\d{1,4})([/.-])(\d{1,2})\2(\d{1,4})(?![\w/-])")
_DOSES = frozenset(("mg", "mcg", "g", "ml", "unit", "meq"))
_SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("bilateral", "bilaterally", "both")}
_SIDE_OF = {"bilaterally": "bilateral", "both": "bilateral"}
_REACH = 6  # words between a side and what is on it
_DENIES = word_list("denies")
_NEGATES = _DENIES | word_list("negates")
_BEFORE, _AFTER = 15, 14  # words between a negation and its term, in questions and answers too
_CLAUSE = re.compile(r"[.;:!?\n]|\b(?:but|except|however|although|reports|endorses|has|is|was)\b")
_NO_TERM, _SYMPTOMS, _NO_DRUG = stems("not_denied"), stems("symptoms"), stems("no_drugs")
_SECTIONS = word_list("headings")


class Grounding(msgspec.Struct, frozen=True):
    """The facts and statements of an answer with their support in a source, in order.

    `of` names the source: document, prompt, or the name of a field of a record.
    """

    of: str
    facts: list[Fact]
    statements: list[Statement]

    @property
    def unsupported(self) -> list[Fact | Statement]:
        """The facts and statements that the source does not support, by position."""
        each: list[Fact | Statement] = [*self.facts, *self.statements]
        return sorted((one for one in each if not one.supported), key=lambda one: one.start)

    @property
    def missing(self) -> tuple[int, int]:
        """The numbers of unsupported facts and unsupported statements."""
        facts, statements = (
            sum(not one.supported for one in each) for each in (self.facts, self.statements)
        )
        return facts, statements

    @property
    def reason(self) -> str:
        """Why the answer is not fully supported, in counts; empty if it is."""
        facts, statements = self.missing
        parts = [f"{facts} of {len(self.facts)} facts"] if facts else []
        parts += [f"{statements} of {len(self.statements)} statements"] if statements else []
        return f"{' and '.join(parts)} not found in the {self.of}" if parts else ""


def ground(
    answer: str, source: Source, *, schema: Mapping[str, Any] | None = None, of: str = "document"
) -> Grounding:
    """Looks up the facts of an answer in a source.

    The answer is free text, or an instance of `schema`, of which values of enumerations are not
    looked up. Against a prompt without a document only numbers and dates are checked: a question
    need not contain its answer.
    """
    if schema is not None:
        return Grounding(of, list(_values(answer, source, schema)), [])
    facts: list[Fact] = []
    statements: list[Statement] = []
    for start, end in _statements(answer):
        found = [
            word._replace(start=word.start + start, end=word.end + start)
            for word in words(answer[start:end])
        ]
        if not content(found):
            continue
        score, span = source.statement(found)
        statements.append(
            Statement(
                text=answer[start:end],
                start=start,
                end=end,
                score=round(score, 3),
                supported=score >= SUPPORTED,
                source=span,
                page=source.page(span),
            )
        )
        facts += sorted(_facts(answer, found, source), key=lambda fact: (fact.start, fact.end))
    if of == "prompt":
        return Grounding(of, [fact for fact in facts if fact.kind in ("number", "date")], [])
    return Grounding(of, facts, statements)


def missing_from(
    document: Document, schema: Mapping[str, Any] | None = None, of: str = "document"
) -> Callable[[str], tuple[int, int]]:
    """A function from answers to `Grounding.missing`, for many answers about one document."""
    source = Source(document)
    return lambda answer: ground(answer, source, schema=schema, of=of).missing


def _statements(answer: str) -> Iterator[Span]:
    """Sentences and lines, without list marks, headings and labels that are headings."""
    at = 0
    for line in answer.splitlines(keepends=True):
        mark = _MARK.match(line)
        first = mark.end() if mark else 0
        breaks = [match.end() for match in _SENTENCE.finditer(line, first)]
        for begin, end in itertools.pairwise((first, *breaks, len(line))):
            label = _LABEL.match(line, begin, end)
            if label and _is_heading(label[0]):
                begin = label.end()
            text = line[begin:end].rstrip()
            if text and not _is_heading(text):
                yield at + begin, at + begin + len(text)
        at += len(line)


def _is_heading(text: str) -> bool:
    found = re.findall(r"[a-z]+|\d", text.lower())
    return all(word in _SECTIONS for word in found)


def _facts(answer: str, statement: Sequence[Word], source: Source) -> Iterator[Fact]:
    """Numbers, dates, drugs, sides and negations of a statement."""
    taken: set[int] = set()
    for match in _DATE.finditer(answer, statement[0].start, statement[-1].end):
        taken |= {
            i for i, word in enumerate(statement) if match.start() <= word.start < match.end()
        }
        found = _found(_date(source, [match[1], match[3], match[4]]))
        yield _fact("date", answer, *match.span(), found, source)
    context = {stem(word.key) for word in content(statement) if not word.number}
    for i, word in enumerate(statement):
        if word.number and i not in taken:
            end = statement[i + 1].end if unit_at(statement, i) else word.end
            yield _fact("number", answer, word.start, end, source.number(statement, i), source)
        if drug := _drug(statement, i):
            if places := source.drugs.get(drug) or source.places.get(stem(drug)):
                place = max(places, key=lambda at: source.proximity(at, context - {stem(drug)}))
                same = source.words[place].key == word.key
                how = Match.EXACT if same else Match.NORMALISED
                found = how, source.span(place, place)
            else:
                found = source.value(word.key, None)
            yield _fact("drug", answer, word.start, word.end, found, source)
        side = _SIDE_OF.get(word.key, word.key)
        if side in _SIDES and (on := _named(answer, statement, i)):
            found = _found(_side(source, side, on))
            yield _fact("side", answer, word.start, on[-1].end, found, source)
    yield from _negations(answer, statement, source)


def _found(span: Span | None) -> tuple[Match, Span | None]:
    return Match.UNSUPPORTED if span is None else Match.NORMALISED, span


def _fact(
    kind: str,
    answer: str,
    start: int,
    end: int,
    found: tuple[Match, Span | None],
    source: Source,
    path: str = "",
) -> Fact:
    how, span = found
    return Fact(
        kind=kind,
        text=answer[start:end],
        start=start,
        end=end,
        match=how,
        path=path,
        source=span,
        page=source.page(span),
    )


def _drug(statement: Sequence[Word], at: int) -> str | None:
    """The name of a drug: one of the list, or a word in front of a dose."""
    word = statement[at]
    if word.key in drugs():
        return drugs()[word.key]
    dosed = at + 2 < len(statement) and statement[at + 1].number and statement[at + 2].key in _DOSES
    plain = word.key.isalpha() and len(word.key) > 4 and word.key not in STOP
    return word.key if dosed and plain and stem(word.key) not in COMMON | _NO_DRUG else None


def _date(source: Source, parts: Sequence[str]) -> Span | None:
    """The span of a date, in any order of its parts, with the month as a number or a name."""
    year = next((str(int(part)) for part in parts if len(part) == 4), None)
    numbers = [str(int(part)) for part in parts]
    rest = [part for part in numbers if part != year] if year else numbers[:2]
    for place, word in enumerate(source.words):
        month = MONTHS.get(word.key)
        if month is None and not word.number:
            continue
        window = range(max(0, place - 2), min(len(source.words), place + 4))
        near = {source.words[i].key: i for i in window if source.words[i].number}
        if month is not None and month in rest:
            others = list(rest)
            others.remove(month)
            if all(other in near for other in others) and (year is None or year in near):
                used = [place, *(near[key] for key in near if key in (*others, year))]
                return source.span(min(used), max(used))
        elif month is None and all(part in near for part in rest) and (not year or year in near):
            used = [near[key] for key in near if key in (*rest, year)]
            return source.span(min(used), max(used))
    return None


def _named(answer: str, statement: Sequence[Word], at: int) -> list[Word]:
    """The body part of a side: up to three words after it, in the same clause."""
    found = []
    for word in statement[at + 1 : at + 4]:
        between = answer[statement[at].end : word.start]
        if re.search(r"[.,;:()]", between) or word.number or word.key in STOP:
            break
        found.append(word)
    return found


def _side(source: Source, side: str, on: Sequence[Word]) -> Span | None:
    """The span of a body part near the same side in the source."""
    keys = _SIDES[side] if side != "bilateral" else ("bilateral", "bilaterally", "both", "left")
    sides = sorted(place for key in keys for place in source.keys.get(key, []))
    for word in reversed(on):
        for place in source.places.get(stem(word.key), []):
            near = [other for other in sides if abs(other - place) <= _REACH]
            if near:
                return source.span(min(near[0], place), max(near[0], place))
    return None


def _negations(answer: str, statement: Sequence[Word], source: Source) -> Iterator[Fact]:
    """Terms that a statement denies, and symptoms that it asserts but the source denies."""
    until = -1
    for i, word in enumerate(statement):
        key = stem(word.key)
        if word.key in _DENIES:
            clause = _CLAUSE.search(answer, word.end, statement[-1].end)
            until = clause.start() if clause else statement[-1].end
            continue
        if word.number or word.key in STOP or len(word.key) < 4:
            continue
        places = source.places.get(key, [])
        if word.start < until:
            if key not in _NO_TERM and key not in COMMON:
                negated = [place for place in places if _is_negated(source, place)]
                found = _found(source.span(negated[0], negated[0]) if negated else None)
                yield _fact("negation", answer, word.start, word.end, found, source)
        elif (
            key in _SYMPTOMS
            and places
            and all(_denied(source, place) for place in places)
            and not any(other.key in _NEGATES for other in statement[max(0, i - 6) : i])
        ):
            yield _fact("negation", answer, word.start, word.end, _found(None), source)


def _is_negated(source: Source, place: int) -> bool:
    """Whether a word of the source has a negation near it, such as "no" in answer to a question."""
    around = source.words[max(0, place - _BEFORE) : place + _AFTER]
    return any(word.key in _NEGATES for word in around)


def _denied(source: Source, place: int) -> bool:
    """Whether a word of the source is denied right there, in its own clause."""
    for before in range(place - 1, max(-1, place - 9), -1):
        between = source.text[source.words[before].end : source.words[place].start]
        if re.search(r"[.;:!?\n]|\bbut\b", between):
            return False
        if source.words[before].key in _DENIES:
            return True
    return False


# --- structured answers ---------------------------------------------------------------------------

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[{}\[\]:,]'
)


def _values(answer: str, source: Source, schema: Mapping[str, Any]) -> Iterator[Fact]:
    """Strings and numbers of a JSON text, each near those of the same object."""
    near: dict[str, Span] = {}  # by the path of the object
    for path, start, end, text in _leaves(answer):
        if not text.strip() or _is_category(schema, path):
            continue
        owner = path.rpartition(".")[0]
        how, span = source.value(text.strip(), near.get(owner))
        if how is Match.UNSUPPORTED and (found := words(text)) and all(w.number for w in found):
            how, span = source.number(found, 0) if len(found) == 1 else (how, span)
        if span is not None:
            near.setdefault(owner, span)
        yield _fact("value", answer, start, end, (how, span), source, path)


def _leaves(answer: str) -> Iterator[tuple[str, int, int, str]]:
    """Path, place in the answer and text of each string and number of a JSON text."""
    stack: list[list[Any]] = []  # for each open object or list: its path, then its key or index
    key = True
    for match in _TOKEN.finditer(answer):
        token = match[0]
        path = _path(stack)
        if token in "{[":
            stack.append([path, 0 if token == "[" else ""])
            key = token == "{"
        elif token in "}]":
            if stack:
                stack.pop()
        elif token == ",":
            if stack and isinstance(stack[-1][1], int):
                stack[-1][1] += 1
            key = bool(stack) and isinstance(stack[-1][1], str)
        elif token == ":":
            key = False
        elif token[0] == '"' and key and stack:
            stack[-1][1] = _text(token)
        elif token[0] == '"':
            yield path, match.start() + 1, match.end() - 1, _text(token)
        elif token not in ("true", "false", "null"):
            yield path, *match.span(), token


def _text(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]


def _path(stack: Sequence[Sequence[Any]]) -> str:
    if not stack:
        return ""
    path, at = stack[-1]
    if isinstance(at, int):
        return f"{path}[{at}]"
    return f"{path}.{at}" if path else str(at)


def _is_category(schema: Mapping[str, Any], path: str) -> bool:
    """Whether a value is one of an enumeration, which the source need not spell out."""
    node: Any = schema
    for part in re.findall(r"[^.\[\]]+|\[\d+\]", path):
        node = _resolved(schema, node)
        node = node.get("items") if part[0] == "[" else node.get("properties", {}).get(part)
        if not isinstance(node, Mapping):
            return False
    node = _resolved(schema, node)
    return "enum" in node or "const" in node


def _resolved(schema: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    """A part of a schema, behind a reference within the file."""
    for _ in range(8):
        reference = node.get("$ref") if isinstance(node, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        node = schema
        for part in reference[2:].split("/"):
            node = node.get(part, {}) if isinstance(node, Mapping) else {}
    return node if isinstance(node, Mapping) else {}
