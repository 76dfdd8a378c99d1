"""Reads tasks: JSON Lines, or MedNLI, RadQA and CLIP as their owners ship them.

A line is `{id, task, kind, instruction, input, reference, choices, ...}`; a text to predict is
`{id, task, kind: "perplexity", text}`. See docs/tasks.md. The data sets become such lines, with the
prompts of Lehman et al. 2023, "Do We Still Need Clinical Language Models?". They need credentials
of PhysioNet; we have none, so names and columns are those of public programs.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from capt_local.bundles.manifest import NAME
from capt_local.evaluate.tasks import (
    LABEL_SEPARATOR,
    MEASURES,
    EvalTask,
    Item,
    Kind,
    Measure,
    problem_of,
)
from capt_local.strict_json import (
    NotReadable,
    Problems,
    check_characters,
    convert,
    form,
    lines,
    parse_json,
    parse_object,
    read_bytes,
    utf8,
)

_MAX_TOKENS = {Kind.CLASSIFICATION: 32, Kind.GENERATION: 512, Kind.PERPLEXITY: 1}
_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_Row = TypeVar("_Row")


def read_task(
    place: Path, *, limit: int | None = None, seed: int = 0, what: str = "The task file"
) -> EvalTask:
    """Reads a task.

    Args:
        place: a file of JSON Lines, or DATASET=PATH with one of `DATASETS`.
        limit: only so many items, drawn at random, in the order of the file.
        seed: of the draw.
        what: how errors call it; its name may be a patient's.

    Raises:
        UsageError: it cannot be read, or lines are not as they should be; the first is reported
            with its number, and how many more there are.
    """
    name, equals, path = str(place).partition("=")
    task = DATASETS[name](Path(path), what) if equals and name in DATASETS else _lines(place, what)
    if limit is None or limit >= len(task.items):
        return task
    chosen = sorted(random.Random(seed).sample(range(len(task.items)), limit))
    return replace(task, items=tuple(task.items[index] for index in chosen))


class TaskLine(msgspec.Struct, frozen=True):
    """A line of a file of items; other keys are ignored."""

    id: str | int
    task: Annotated[str, form(NAME.pattern, "must be 1 to 64 letters, digits, '.-_'")]
    kind: Kind
    instruction: str = ""
    input: str = ""
    text: str = ""
    reference: str = ""
    choices: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    licence: str = ""
    measure: Measure | None = None
    no_answer: str = ""

    @property
    def measured_by(self) -> Measure:
        return self.measure or MEASURES[self.kind][0]

    def item(self) -> Item:
        if self.kind is Kind.PERPLEXITY:
            return Item(str(self.id), "", self.text, "")
        return Item(
            str(self.id),
            self.instruction,
            self.input,
            self.reference,
            self.choices,
            self.alternatives,
        )


def _lines(path: Path, what: str) -> EvalTask:
    data = read_bytes(path, what)
    return _task(
        lines(data),
        lambda raw: convert(parse_object(raw), TaskLine),
        Problems(what),
        hashlib.sha256(data).hexdigest(),
    )


def _task(
    rows: Iterable[tuple[int, _Row]],
    parse: Callable[[_Row], TaskLine],
    problems: Problems,
    digest: str,
    max_tokens: int | None = None,
) -> EvalTask:
    """The task of numbered rows; raises what is wrong with them."""
    found: dict[str, TaskLine] = {}
    first: TaskLine | None = None
    for number, row in rows:
        try:
            line = parse(row)
            first = first or line
            _check(line, first, found)
        except NotReadable as error:
            problems.add(number, error)
        else:
            found[str(line.id)] = line
    problems.raise_first()
    if first is None:
        problems.fail("it holds no items")
    return EvalTask(
        name=first.task,
        kind=first.kind,
        items=tuple(line.item() for line in found.values()),
        measure=first.measured_by,
        licence="; ".join(dict.fromkeys(line.licence for line in found.values() if line.licence)),
        max_tokens=max_tokens or _MAX_TOKENS[first.kind],
        no_answer=first.no_answer,
        digest=digest,
        total=len(found),
    )


def _check(line: TaskLine, first: TaskLine, before: dict[str, TaskLine]) -> None:
    """Whether a line is an item that goes with those before it."""
    if line.measured_by not in MEASURES[line.kind]:
        raise NotReadable('"measure" is none of this "kind"')
    if problem := problem_of(line.item(), line.measured_by, line.no_answer):
        raise NotReadable(problem)
    if str(line.id) in before:
        raise NotReadable('this "id" stood on a line before')
    shared = (line.task, line.kind, line.measured_by, line.no_answer)
    if shared != (first.task, first.kind, first.measured_by, first.no_answer):
        raise NotReadable('"task", "kind", "measure" or "no_answer" is not that of the first line')


# --- MedNLI ---------------------------------------------------------------------------------------


class _NliRow(msgspec.Struct):
    pairID: str | int
    sentence1: str
    sentence2: str
    gold_label: Literal["entailment", "contradiction", "neutral"]


_WORDS = {"entailment": "Yes", "contradiction": "No", "neutral": "It's impossible to say"}
_ALIASES = {
    **dict.fromkeys(("true", "always", "entailment"), "Yes"),
    **dict.fromkeys(("false", "never", "contradiction"), "No"),
    **dict.fromkeys(
        (
            *("maybe", "it is not possible to tell", "it is not possible to say", "inconclusive"),
            *("sometimes", "neither", "neutral"),
        ),
        "It's impossible to say",
    ),
}


def mednli(path: Path, what: str) -> EvalTask:
    """MedNLI 1.0.0 (Romanov and Shivade 2018), such as `mli_test_v1.jsonl`.

    Asked and answered in words as in prompt 11 of Lehman et al., with their mapping of answers.
    """
    data = read_bytes(path, what)

    def parse(raw: bytes) -> TaskLine:
        row = convert(parse_object(raw), _NliRow)
        premise = row.sentence1.strip().removesuffix(".")
        return TaskLine(
            id=row.pairID,
            task="mednli-words",
            kind=Kind.CLASSIFICATION,
            input=f'Does "{premise}" mean that "{row.sentence2.strip()}"?',
            reference=_WORDS[row.gold_label],
            choices=tuple(_WORDS.values()),
            licence=_LICENCE,
        )

    task = _task(lines(data), parse, Problems(what), hashlib.sha256(data).hexdigest())
    return replace(task, aliases=_ALIASES)


# --- RadQA ----------------------------------------------------------------------------------------


class _SquadAnswer(msgspec.Struct):
    text: str


class _SquadQuestion(msgspec.Struct):
    id: str
    question: str
    answers: list[_SquadAnswer]


class _SquadParagraph(msgspec.Struct):
    context: str
    qas: list[_SquadQuestion]


class _SquadDocument(msgspec.Struct):
    paragraphs: list[_SquadParagraph]


class _Squad(msgspec.Struct):
    data: list[_SquadDocument]


def radqa(path: Path, what: str) -> EvalTask:
    """RadQA 1.0.0 (Soni et al. 2022), such as `test.json`, in the form of SQuAD 2."""
    data = read_bytes(path, what)
    problems = Problems(what, "question")
    try:
        documents = convert(parse_json(data), _Squad).data
    except NotReadable as error:
        problems.fail(str(error))
    questions = [
        (paragraph.context, question)
        for document in documents
        for paragraph in document.paragraphs
        for question in paragraph.qas
    ]

    def parse(row: tuple[str, _SquadQuestion]) -> TaskLine:
        report, question = row
        answers = [answer.text for answer in question.answers] or ["unanswerable"]
        first, *others = dict.fromkeys(answers)
        return TaskLine(
            id=question.id,
            task="radqa",
            kind=Kind.GENERATION,
            measure=Measure.SPAN,
            instruction=(
                "Answer the question with the words of the radiology report, copied as they "
                "stand. If the report does not answer it, reply: unanswerable"
            ),
            input=f"Report:\n{report}\n\nQuestion: {question.question}",
            reference=first,
            alternatives=tuple(others),
            no_answer="unanswerable",
            licence=_LICENCE,
        )

    digest = hashlib.sha256(data).hexdigest()
    return _task(enumerate(questions, 1), parse, problems, digest, max_tokens=128)


# --- CLIP -----------------------------------------------------------------------------------------

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
    "appointment": "Does the sentence contain information about current or future appointments?",
    "lab": "Does the sentence contain any information about laboratory tests?",
    "procedure": "Does the sentence contain any information about procedures (e.g., surgeries)?",
    "medication": "Does the sentence contain information about medications?",
    "imaging": "Does the sentence contain any information about radiology or imaging?",
    "patient instructions": (
        "Does the sentence contain any information about what to do post-discharge?"
    ),
    "other": "Does the sentence contain any other important actionable information?",
}
_AROUND = 600  # bytes of whole sentences on each side, about as much as Lehman et al. take
_LONGEST_LIST = 1 << 17


def clip(path: Path, what: str) -> EvalTask:
    """CLIP 1.0.0 (Mullenbach et al. 2021): sentences of discharge notes with sets of labels.

    A yes/no question is asked for each label, as for models without examples. `path` is that of
    the ids of a split, such as `test_ids.csv`, beside `sentence_level.csv`.
    """
    ids = read_bytes(path, f"{what}, the ids that count")
    data = read_bytes(path.with_name("sentence_level.csv"), f"{what}, sentence_level.csv")
    problems = Problems(what)
    try:
        rows = list(csv.DictReader(io.StringIO(utf8(data), newline=""), strict=True))
    except (NotReadable, csv.Error):
        problems.fail("sentence_level.csv is not CSV in UTF-8")
    wanted = {line.strip().decode("utf-8", "replace") for _, line in lines(ids)}

    def parse(index: int) -> TaskLine:
        row = rows[index]
        sentence = _sentence(row)
        labels = dict.fromkeys(_LABELS.get(one, one) for one in _listed(row.get("labels")))
        return TaskLine(
            id=f"{row['doc_id']}-{row.get('sent_index')}",
            task="clip-questions",
            kind=Kind.GENERATION,
            measure=Measure.LABELS,
            input=f"Context: {_with_context(rows, index, sentence)}\n\nSentence: {sentence}",
            reference=LABEL_SEPARATOR.join(labels) or "none",
            choices=tuple(_LABELS.values()),
            no_answer="none",
            licence=_LICENCE,
        )

    numbered = ((i + 2, i) for i, row in enumerate(rows) if row.get("doc_id") in wanted)
    both = hashlib.sha256(ids).digest() + hashlib.sha256(data).digest()
    task = _task(numbered, parse, problems, hashlib.sha256(both).hexdigest(), max_tokens=32)
    return replace(task, questions=_QUESTIONS)


def _with_context(rows: Sequence[dict[str, Any]], index: int, sentence: str) -> str:
    """A sentence between whole sentences of the same document."""
    parts = [sentence]
    for side in (range(index - 1, -1, -1), range(index + 1, len(rows))):
        used = 0
        for other in side:
            if rows[other].get("doc_id") != rows[index].get("doc_id"):
                break
            try:
                text = _sentence(rows[other])
            except NotReadable:
                break
            used += len(text.encode()) + 1
            if used > _AROUND:
                break
            parts.insert(0 if other < index else len(parts), text)
    return " ".join(parts)


def _sentence(row: dict[str, Any]) -> str:
    return " ".join(_listed(row.get("sentence")))


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


DATASETS: dict[str, Callable[[Path, str], EvalTask]] = {
    "mednli-words": mednli,
    "radqa": radqa,
    "clip-questions": clip,
}
