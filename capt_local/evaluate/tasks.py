"""Evaluation tasks: items, measures, prompts, and parsing of answers.

They come from JSON Lines, or from MedNLI, RadQA and CLIP as their owners ship them. A line is
`{id, task, kind, instruction, input, reference, choices, ...}`; a text to predict is
`{id, task, kind: "perplexity", text}`. See docs/tasks.md. The data sets become such lines, with the
prompts of Lehman et al. 2023, "Do We Still Need Clinical Language Models?". They need PhysioNet
credentials, which we do not have, so names and columns are those of public programs.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from capt_local.bundles.manifest import NAME
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.strict_json import (
    ParseError,
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

_LONGEST_ID = 256
LABEL_SEPARATOR = ", "


class Kind(StrEnum):
    """What a model does."""

    CLASSIFICATION = "classification"  # names one of some choices
    GENERATION = "generation"  # writes a text
    PERPLEXITY = "perplexity"  # predicts a text


class Measure(StrEnum):
    """What an answer is measured by; see `evaluate.metrics`."""

    CHOICE = "choice"  # accuracy and macro-F1
    ROUGE = "rouge"  # overlap with the reference
    SPAN = "span"  # exact match and F1 of tokens, as for SQuAD
    LABELS = "labels"  # micro- and macro-F1 of a set of choices
    FIELDS = "fields"  # each field of a JSON object
    BITS = "bits"  # bits per byte


MEASURES: dict[Kind, tuple[Measure, ...]] = {  # the first is the default
    Kind.CLASSIFICATION: (Measure.CHOICE,),
    Kind.GENERATION: (Measure.ROUGE, Measure.SPAN, Measure.LABELS, Measure.FIELDS),
    Kind.PERPLEXITY: (Measure.BITS,),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer."""

    id: str
    instruction: str  # may be empty where the input says it
    input: str  # for perplexity, the text itself
    reference: str  # one of `choices`; labels that apply, joined with ", "; empty for perplexity
    choices: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()  # as right as the reference

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.reference, *self.alternatives)


def folded(text: str) -> str:
    """A text case-folded, with runs of white space as one space."""
    return " ".join(text.casefold().split())


def labels_of(reference: str, no_answer: str) -> tuple[str, ...]:
    """The labels of a reference; `no_answer` is that without any."""
    return () if reference == no_answer else tuple(reference.split(LABEL_SEPARATOR))


def json_object(text: str) -> dict[str, Any] | None:
    """A text as a JSON object; None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def problem_of(item: Item, measure: Measure, no_answer: str = "") -> str | None:
    """Why an item does not fit its measure, quoting nothing of it; None if it does."""
    choices = item.choices
    if not item.id.strip() or len(item.id) > _LONGEST_ID or not item.id.isprintable():
        return f'"id" must be 1 to {_LONGEST_ID} printable characters'
    if not item.input.strip():
        return '"text" is empty' if measure is Measure.BITS else '"input" is empty'
    if measure is Measure.BITS:
        return None
    if any(not reference.strip() for reference in item.references):
        return '"reference" is empty'
    if measure is Measure.FIELDS and json_object(item.reference) is None:
        return '"reference" is no JSON object'
    if measure not in (Measure.CHOICE, Measure.LABELS):
        return '"choices" are only for a classification' if choices else None
    if len(choices) < (2 if measure is Measure.CHOICE else 1):
        return '"choices" must be at least two' if choices else 'no "choices"'
    if any(not choice.strip() or choice != choice.strip() for choice in choices):
        return 'one of "choices" is empty, or begins or ends with a space'
    if len({folded(choice) for choice in choices}) < len(choices):
        return 'two of "choices" are the same, but for capitals and spaces'
    if measure is Measure.CHOICE:
        return None if item.reference in choices else '"reference" is not one of "choices"'
    if any(LABEL_SEPARATOR in choice for choice in choices):
        return 'one of "choices" has a comma in it'
    named = labels_of(item.reference, no_answer)
    if not set(named) <= set(choices) or len(set(named)) < len(named):
        return '"reference" names a label that is not one of "choices", or one twice'
    return None


@dataclass(frozen=True, slots=True)
class EvalTask:
    """Items of one kind; see `read_task`."""

    name: str
    kind: Kind
    items: tuple[Item, ...]  # at least one, in the order of the file
    measure: Measure
    licence: str = ""
    max_tokens: int = 512
    no_answer: str = ""  # the answer that says that there is none, or that no label applies
    aliases: Mapping[str, str] = field(default_factory=dict)  # further words for a choice
    questions: Mapping[str, str] = field(default_factory=dict)  # for each label one with yes or no
    digest: str = ""  # SHA-256 over all files
    total: int = 0  # items before `limit`
    cut: frozenset[str] = frozenset()  # ids of the items whose input was cut on request
    choices: tuple[str, ...] = field(init=False)  # of all items
    same_choices: bool = field(init=False)  # whether they are classes

    def __post_init__(self) -> None:
        each = dict.fromkeys(item.choices for item in self.items)
        found = dict.fromkeys(choice for choices in each for choice in choices)
        object.__setattr__(self, "choices", tuple(found))
        object.__setattr__(self, "same_choices", len(each) == 1)


def shortened(task: EvalTask, size: int | None) -> EvalTask:
    """The task with inputs of at most `size` bytes: their beginnings, in whole characters.

    Raises:
        UsageError: nothing would be left of an input.
    """
    if size is None:
        return task
    items = tuple(
        replace(item, input=item.input.encode()[:size].decode("utf-8", "ignore"))
        for item in task.items
    )
    if any(not item.input.strip() for item in items):
        raise UsageError(f"--max-input-bytes {size} leaves nothing of an input; allow more.")
    cut = {old.id for old, new in zip(task.items, items, strict=True) if old.input != new.input}
    return replace(task, items=items, cut=frozenset(cut))


# --- how an item is asked, and its answer read ---------------------------------------------------

YES_NO = ("Yes", "No")
_BETWEEN = "\n\n"
_LEAD = "\n\nAnswer:"  # between question and answer of raw text
_AROUND = "\"'`*_“”‘’«» \t.,:;!?()[]"
_LEAD_IN = re.compile(
    r"^(?:the\s+)?(?:(?:best|correct|final)\s+)?(?:answer|option|choice)\b\W*(?:is\b)?"
)
_OR = r"\s*(?:,|/|or\b|and\b)\s*(?:or\b|and\b)?\s*"
_DENIAL = re.compile(r"(?:\b(?:not|never|no|neither|nor|cannot|without)|n['’]t)\s+(?:\w+\s+)?$")


def messages(item: Item, task: EvalTask) -> list[Message]:
    """The conversation that asks for an answer."""
    return [Message("user", _question(item, task))]


def text(item: Item, task: EvalTask) -> str:
    """The same as raw text for a model without a chat template; the answer continues it."""
    return _question(item, task) + _LEAD


def label_question(item: Item, task: EvalTask, label: str, *, raw: bool) -> str | list[Message]:
    """Whether one label applies, as a question that is answered with `YES_NO`."""
    options = "\n".join(f"-{answer}" for answer in YES_NO)
    asked = replace(item, input=f"{item.input}\n\n{task.questions[label]} Options:\n{options}")
    return text(asked, task) if raw else messages(asked, task)


def _question(item: Item, task: EvalTask) -> str:
    parts = [item.instruction.strip(), item.input]
    if task.kind is Kind.CLASSIFICATION:
        parts.append(f"Reply with one of these and nothing else: {', '.join(item.choices)}")
    return _BETWEEN.join(part for part in parts if part)


def read_answer(answer: str, item: Item, task: EvalTask) -> str | None:
    """The choice that an answer names, or the text of a generation; None if there is none."""
    if task.kind is not Kind.CLASSIFICATION:
        return answer.strip() or None
    named = named_choice(answer, (*item.choices, *task.aliases))
    return task.aliases.get(named, named) if named is not None else None


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names, by the first of three rules that holds; else None.

    The rules: the answer is the choice; it begins with the choice as a word of its
    own; its first line with any choice in it has exactly one, not negated.
    """
    by_fold = {folded(choice): choice for choice in choices}
    bare = folded(answer.strip().strip(_AROUND))
    if bare in by_fold:
        return by_fold[bare]
    if all(len(choice) == 1 for choice in choices):  # a bare "A" before a word is an article
        letter = re.match(rf"\(?([{re.escape(''.join(choices))}])[.):,\n]", answer.strip())
        return letter[1] if letter else None
    # Where one choice is a part of another, the longer one.
    longest = sorted(by_fold, key=len, reverse=True)
    one = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"
    begun = _LEAD_IN.sub("", folded(answer).lstrip(_AROUND)).lstrip(_AROUND)
    match = re.match(one, begun)
    if match and not re.match(rf"{_OR}{one}\s*(?:$|[,/.;?]|or\b)", begun[match.end() :]):
        return by_fold[match.group()]
    for line in map(folded, answer.splitlines()):
        if found := list(re.finditer(one, line)):
            named = {match.group() for match in found}
            denied = any(_DENIAL.search(line[: match.start()]) for match in found)
            return None if denied or len(named) > 1 else by_fold[named.pop()]
    return None


_MAX_TOKENS = {Kind.CLASSIFICATION: 32, Kind.GENERATION: 512, Kind.PERPLEXITY: 1}
_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_Row = TypeVar("_Row")


def read_task(
    place: Path, *, limit: int | None = None, seed: int = 0, what: str = "The task file"
) -> EvalTask:
    """Reads a file of JSON Lines, or DATASET=PATH with one of `DATASETS`.

    With a limit only so many items, drawn at random, in the order of the file. Errors call the file
    `what`: its name may be a patient's.

    Raises:
        UsageError: it cannot be read, or lines are not as they should be; the first is reported
            with its number, and how many more there are.
    """
    name, equals, path = str(place).partition("=")
    if equals and name in DATASETS:
        task = DATASETS[name](Path(path), what)
    else:
        task = _task_of_lines(place, what, lambda raw: convert(parse_object(raw), TaskLine))
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
        question = (str(self.id), self.instruction, self.input)
        return Item(*question, self.reference, self.choices, self.alternatives)


def _task_of_lines(path: Path, what: str, parse: Callable[[bytes], TaskLine]) -> EvalTask:
    data = read_bytes(path, what)
    return _task(lines(data), parse, Problems(what), hashlib.sha256(data).hexdigest())


def _task(
    rows: Iterable[tuple[int, _Row]],
    parse: Callable[[_Row], TaskLine],
    problems: Problems,
    digest: str,
    max_tokens: int | None = None,
) -> EvalTask:
    """Builds a task from numbered rows. Raises UsageError: rows are invalid."""
    found: dict[str, TaskLine] = {}
    first: TaskLine | None = None
    for number, row in rows:
        try:
            line = parse(row)
            first = first or line
            _check(line, first, found)
            found[str(line.id)] = line
        except ParseError as error:
            problems.add(number, error)
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
    """Raises ParseError if a line is invalid, or does not fit those before it."""
    if line.measured_by not in MEASURES[line.kind]:
        raise ParseError('"measure" is none of this "kind"')
    if problem := problem_of(line.item(), line.measured_by, line.no_answer):
        raise ParseError(problem)
    if str(line.id) in before:
        raise ParseError('this "id" stood on a line before')
    shared = (line.task, line.kind, line.measured_by, line.no_answer)
    if shared != (first.task, first.kind, first.measured_by, first.no_answer):
        raise ParseError('"task", "kind", "measure" or "no_answer" is not that of the first line')


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

    return replace(_task_of_lines(path, what, parse), aliases=_ALIASES)


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
    except ParseError as error:
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
_BYTES_AROUND = 600  # bytes of whole sentences on each side, about as much as Lehman et al. take
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
    except (ParseError, csv.Error):
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
            except ParseError:
                break
            used += len(text.encode()) + 1
            if used > _BYTES_AROUND:
                break
            parts.insert(0 if other < index else len(parts), text)
    return " ".join(parts)


def _sentence(row: dict[str, Any]) -> str:
    return " ".join(_listed(row.get("sentence")))


def _listed(value: object) -> list[str]:
    """A list of texts that is written as text, in JSON or as Python writes it."""
    if not isinstance(value, str) or len(value) > _LONGEST_LIST:
        raise ParseError("a list is missing, or too long")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ParseError("not a list of texts")
    check_characters(found)
    return found


DATASETS: dict[str, Callable[[Path, str], EvalTask]] = {
    "mednli-words": mednli,
    "radqa": radqa,
    "clip-questions": clip,
}
