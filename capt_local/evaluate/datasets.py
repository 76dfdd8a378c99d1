"""MedNLI, RadQA and CLIP as their owners ship them, with the prompts of Lehman et al. 2023.

"Do We Still Need Clinical Language Models?" (elehman16/do-we-still-need-clinical-lms). The files
need credentials of PhysioNet; we have none, so names and columns are those of public programs, and
the tests run on made-up rows.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from capt_local.evaluate.tasks import EvalTask, Item, Kind, Measure, joined_labels, problem_of
from capt_local.strict_json import (
    NotReadable,
    Problems,
    check_characters,
    convert,
    lines,
    parse_json,
    parse_object,
    read_bytes,
    utf8,
)

_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
Numbered = Iterator[tuple[int, Item | NotReadable]]


class _NliRow(msgspec.Struct):
    pairID: str | int
    sentence1: str
    sentence2: str
    gold_label: Literal["entailment", "contradiction", "neutral"]


_WORDS = {"entailment": "Yes", "contradiction": "No", "neutral": "It's impossible to say"}
_ALIASES = {
    "Yes": ("true", "always", "entailment"),
    "No": ("false", "never", "contradiction"),
    "It's impossible to say": (
        *("maybe", "it is not possible to tell", "it is not possible to say", "inconclusive"),
        *("sometimes", "neither", "neutral"),
    ),
}


def mednli(path: Path, what: str, *, words: bool = False) -> EvalTask:
    """MedNLI 1.0.0 (Romanov and Shivade 2018), such as `mli_test_v1.jsonl`.

    Args:
        path: of the file.
        what: what errors call it.
        words: asks in words, with the mapping of answers (prompt 11 of Lehman et al.).

    Raises:
        UsageError: a line is not one of it.
    """
    data = read_bytes(path, what)

    def items() -> Numbered:
        for number, line in lines(data):
            try:
                row = convert(parse_object(line), _NliRow)
            except NotReadable as error:
                yield number, error
                continue
            if words:
                question = f'Does "{row.sentence1}" mean that "{row.sentence2}"?'
                answer, choices, instruction = _WORDS[row.gold_label], tuple(_WORDS.values()), ""
            else:
                question = f"Premise: {row.sentence1}\n\nHypothesis: {row.sentence2}"
                answer, choices = row.gold_label, tuple(_WORDS)
                instruction = (
                    "Does the hypothesis follow from the premise (entailment), contradict it "
                    "(contradiction), or neither (neutral)?"
                )
            yield number, Item(str(row.pairID), instruction, question, answer, choices)

    aliases = {word: choice for choice, each in _ALIASES.items() for word in each}
    return _task(
        "mednli-words" if words else "mednli",
        Kind.CLASSIFICATION,
        Measure.CHOICE,
        items(),
        [data],
        Problems(what),
        max_tokens=32,
        aliases=aliases if words else {},
    )


def radqa(path: Path, what: str) -> EvalTask:
    """RadQA 1.0.0 (Soni et al. 2022), such as `test.json`, in the form of SQuAD 2."""
    data = read_bytes(path, what)
    problems = Problems(what, "question")
    instruction = (
        "Answer the question with the words of the radiology report, copied as they stand. If the "
        "report does not answer it, reply: unanswerable"
    )
    try:
        documents = convert(parse_json(data), _Squad).data
    except NotReadable as error:
        problems.fail(str(error))

    def items() -> Numbered:
        number = 0
        for paragraph in (each for document in documents for each in document.paragraphs):
            for question in paragraph.qas:
                number += 1
                text = f"Report:\n{paragraph.context}\n\nQuestion: {question.question}"
                answers = [answer.text for answer in question.answers] or ["unanswerable"]
                first, *others = dict.fromkeys(answers)
                yield number, Item(question.id, instruction, text, first, (), tuple(others))

    return _task(
        "radqa",
        Kind.GENERATION,
        Measure.SPAN,
        items(),
        [data],
        problems,
        max_tokens=128,
        no_answer="unanswerable",
    )


class _Answer(msgspec.Struct):
    text: str


class _Question(msgspec.Struct):
    id: str
    question: str
    answers: list[_Answer]


class _Paragraph(msgspec.Struct):
    context: str
    qas: list[_Question]


class _Document(msgspec.Struct):
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Document]


_LABELS = {
    "I-Appointment-related followup": "appointment",
    "I-Lab-related followup": "lab",
    "I-Procedure-related followup": "procedure",
    "I-Medication-related followups": "medication",
    "I-Imaging-related followup": "imaging",
    "I-Case-specific instructions for patient": "patient instructions",
    "I-Other helpful contextual information": "other",
}
_QUESTIONS = {
    "appointment": (
        "Does the sentence contain information about current or future appointments?"
    ),
    "lab": "Does the sentence contain any information about laboratory tests?",
    "procedure": (
        "Does the sentence contain any information about procedures (e.g., surgeries)?"
    ),
    "medication": "Does the sentence contain information about medications?",
    "imaging": "Does the sentence contain any information about radiology or imaging?",
    "patient instructions": (
        "Does the sentence contain any information about what to do post-discharge?"
    ),
    "other": "Does the sentence contain any other important actionable information?",
}  # fmt: skip
_AROUND = 600  # bytes of whole sentences on each side, about as much as Lehman et al. take
_LONGEST_LIST = 1 << 17


def clip(path: Path, what: str, *, questions: bool = False) -> EvalTask:
    """CLIP 1.0.0 (Mullenbach et al. 2021): sentences of discharge notes with sets of labels.

    Args:
        path: of the ids of a split, such as `test_ids.csv`, beside `sentence_level.csv`.
        what: what errors call it.
        questions: asks a yes/no question for each label, as for zero-shot models.

    Raises:
        UsageError: a row is not one of it.
    """
    ids = read_bytes(path, f"{what}, the ids that count")
    data = read_bytes(path.with_name("sentence_level.csv"), f"{what}, sentence_level.csv")
    problems = Problems(what)
    try:
        rows = list(csv.DictReader(io.StringIO(utf8(data), newline=""), strict=True))
    except (NotReadable, csv.Error):
        problems.fail("sentence_level.csv is not CSV in UTF-8")
    counting = {line.strip().decode("utf-8", "replace") for _, line in lines(ids)}
    instruction = (
        "Which kinds of action does this sentence of a discharge note ask for? Reply with those "
        "that apply, separated by commas, or with: none\nKinds: " + ", ".join(_QUESTIONS)
    )

    def items() -> Numbered:
        texts: list[str | NotReadable] = []
        for row in rows:
            try:
                texts.append(" ".join(_listed(row.get("sentence"))))
            except NotReadable as error:
                texts.append(error)
        for index, row in enumerate(rows):
            if row.get("doc_id") not in counting:
                continue
            text = texts[index]
            try:
                if isinstance(text, NotReadable):
                    raise text
                named = tuple(
                    dict.fromkeys(_LABELS.get(one, one) for one in _listed(row.get("labels")))
                )
                around = _around(rows, texts, index)
                yield (
                    index + 2,
                    Item(
                        f"{row['doc_id']}-{row.get('sent_index')}",
                        "" if questions else instruction,
                        f"Context: {around}\n\nSentence: {text}",
                        joined_labels(named, "none"),
                        tuple(_QUESTIONS),
                    ),
                )
            except NotReadable as error:
                yield index + 2, error

    return _task(
        "clip-questions" if questions else "clip",
        Kind.GENERATION,
        Measure.LABELS,
        items(),
        [ids, data],
        problems,
        max_tokens=32,
        no_answer="none",
        questions=_QUESTIONS if questions else {},
    )


def _around(rows: Sequence[dict[str, Any]], texts: Sequence[object], index: int) -> str:
    """A sentence between whole sentences of the same document."""
    parts = [str(texts[index])]
    for side in (range(index - 1, -1, -1), range(index + 1, len(rows))):
        used = 0
        for other in side:
            text = texts[other]
            if rows[other].get("doc_id") != rows[index].get("doc_id") or not isinstance(text, str):
                break
            used += len(text.encode()) + 1
            if used > _AROUND:
                break
            parts.insert(0 if other < index else len(parts), text)
    return " ".join(parts)


def _listed(value: object) -> list[str]:
    """A list of texts that is written as text, in JSON or as Python writes it."""
    if not isinstance(value, str) or len(value) > _LONGEST_LIST:
        raise NotReadable("a list is missing, or too long")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise NotReadable("not a list of texts")
    check_characters(found)
    return found


def _task(
    name: str,
    kind: Kind,
    measure: Measure,
    items: Numbered,
    files: Sequence[bytes],
    problems: Problems,
    **more: Any,
) -> EvalTask:
    """The task of a data set; raises what is wrong with its rows."""
    found: dict[str, Item] = {}
    for number, item in items:
        if isinstance(item, NotReadable):
            problems.add(number, item)
        elif problem := problem_of(item, measure, more.get("no_answer", "")):
            problems.add(number, problem)
        elif item.id in found:
            problems.add(number, "this id stood on a row before")
        else:
            found[item.id] = item
    problems.raise_first()
    if not found:
        problems.fail("it holds no items")
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files)).hexdigest()
    return EvalTask(
        name,
        kind,
        tuple(found.values()),
        measure,
        _LICENCE,
        digest=digest,
        total=len(found),
        **more,
    )


DATASETS: dict[str, Callable[[Path, str], EvalTask]] = {
    "mednli": mednli,
    "mednli-words": lambda path, what: mednli(path, what, words=True),
    "radqa": radqa,
    "clip": clip,
    "clip-questions": lambda path, what: clip(path, what, questions=True),
}
