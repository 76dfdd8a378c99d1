"""What `score` reads and computes: texts, answers after a prompt, and questions with choices.

A line of JSON Lines is `{id, text}`, `{id, prompt | messages, continuation | completion}` or
`{id, prompt | messages, choices, answer}`; `id` and `answer` may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capt_local.decoding.answers import Choosing
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import ContextOverflow, UsageError
from capt_local.evaluate.items import identifier, texts
from capt_local.prompting.messages import Message, messages_of
from capt_local.runtime import Runtime
from capt_local.strict_json import NotReadable, Problems, lines, parse_object, read_bytes, utf8


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        id: of the line; the number of the line if it has none.
        data: UTF-8, not empty.
        cut: whether it was cut on request.
        line: where it stands in its file, from 1.
    """

    id: str
    data: bytes
    cut: bool = False
    line: int = 1


def is_lines(path: Path) -> bool:
    """Whether a file is JSON Lines, by its name."""
    return path.suffix.lower() == ".jsonl"


def whole_file(data: bytes, what: str, size: int | None = None) -> Text:
    """A file that is one text.

    Raises:
        UsageError: it is empty or not UTF-8.
    """
    if not data:
        raise UsageError(f"{what} holds no text.")
    try:
        return text_of({"text": utf8(data)}, 1, size)
    except NotReadable as error:
        raise UsageError(f"{what}: {error}.") from None


def text_of(value: Mapping[str, object], number: int, size: int | None) -> Text:
    """The text of a line.

    Args:
        value: the fields of the line.
        number: of the line.
        size: the most bytes of the text that are kept.

    Raises:
        NotReadable: there is no text, or an empty one, or nothing of it would be left.
    """
    name = identifier(value["id"]) if "id" in value else str(number)
    text = value.get("text")
    if not isinstance(text, str):
        raise NotReadable('"text" must be a text' if "text" in value else 'no "text"')
    if not text:
        raise NotReadable("the text is empty")
    data = text.encode()
    if size is None or len(data) <= size:
        return Text(name, data, line=number)
    kept = data[:size].decode("utf-8", "ignore").encode()
    if not kept:
        raise NotReadable(f"the first character is longer than {size} bytes; allow more")
    return Text(name, kept, cut=True, line=number)


@dataclass(frozen=True, slots=True)
class Continuation:
    """An answer that is given after a prompt.

    Attributes:
        id: of the line; the number of the line if it has none.
        prompt: a text, or a conversation that ends with the user's turn.
        data: UTF-8, not empty.
        line: where it stands in its file, from 1.
    """

    id: str
    prompt: str | tuple[Message, ...]
    data: bytes
    line: int = 1


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A prompt with several answers.

    Attributes:
        id: of the line; the number of the line if it has none.
        prompt: a text, or a conversation that ends with the user's turn.
        choices: at least two, all different, none empty.
        answer: the place of the right one, if it is known.
        line: where it stands in its file, from 1.
    """

    id: str
    prompt: str | tuple[Message, ...]
    choices: tuple[str, ...]
    answer: int | None = None
    line: int = 1


ScoreInput = Text | Continuation | ChoiceQuestion


def read_score_inputs(
    path: Path, what: str, *, raw: bool = False, limit: int | None = None, size: int | None = None
) -> list[ScoreInput]:
    """Reads a file for `score`; all of its lines are checked.

    Args:
        path: `.jsonl`: see above; anything else is one text.
        what: what errors call the file; its name may be a patient's.
        raw: whether prompts are texts to go on with: then they may be empty, but not `messages`.
        limit: only so many items.
        size: only so many bytes of each text.

    Raises:
        UsageError: the file cannot be read, or lines are not as they should be; the first is told
            with its number, and how many more there are.
    """
    data = read_bytes(path, what, pipes=True)
    if not is_lines(path):
        return [whole_file(data, what, size)]
    problems, found = Problems(what), list[ScoreInput]()
    seen: dict[str, int] = {}
    for number, line in lines(data):
        try:
            item = _item(number, parse_object(line), raw=raw, size=size)
            before = seen.setdefault(item.id, number)
            if before != number:
                raise NotReadable(f"its id is that of line {before}")
        except NotReadable as error:
            problems.add(number, error)
        else:
            found.append(item)
    problems.raise_first()
    if not found:
        raise UsageError(f"{what} holds no text.")
    return found[:limit]


def _item(number: int, value: Mapping[str, object], *, raw: bool, size: int | None) -> ScoreInput:
    kinds = [key for key in ("text", "continuation", "completion", "choices") if key in value]
    if not kinds:
        raise NotReadable('no "text", "continuation" or "choices"')
    if len(kinds) > 1:
        raise NotReadable(f'"{kinds[0]}" and "{kinds[1]}" do not go together')
    (kind,) = kinds
    if kind == "text":
        if "prompt" in value or "messages" in value:
            raise NotReadable('a "text" has no prompt before it; name it "continuation"')
        return text_of(value, number, size)
    if size is not None:
        raise NotReadable("--max-bytes cuts texts alone, and this is an answer")
    name = identifier(value["id"]) if "id" in value else str(number)
    prompt = _prompt(value, raw=raw)
    if kind == "choices":
        choices = _choices(value["choices"])
        return ChoiceQuestion(name, prompt, choices, _answer(value.get("answer"), choices), number)
    answer = value[kind]
    if not isinstance(answer, str):
        raise NotReadable(f'"{kind}" must be a text')
    if not answer:
        raise NotReadable(f"the {kind} is empty")
    return Continuation(name, prompt, answer.encode(), number)


def _prompt(value: Mapping[str, object], *, raw: bool) -> str | tuple[Message, ...]:
    if ("prompt" in value) == ("messages" in value):
        raise NotReadable('either "prompt" or "messages" is needed')
    if "messages" in value:
        if raw:
            raise NotReadable('"messages" have no raw form: give a "prompt", or leave out --raw')
        return messages_of(value["messages"])
    prompt = value["prompt"]
    if not isinstance(prompt, str):
        raise NotReadable('"prompt" must be a text')
    if not raw and not prompt.strip():
        raise NotReadable("the prompt is empty")
    return prompt


def _choices(value: object) -> tuple[str, ...]:
    choices = texts(value, "choices")
    if len(choices) < 2:
        raise NotReadable("there are fewer than two choices")
    if "" in choices:
        raise NotReadable("a choice is empty")
    if len(set(choices)) < len(choices):
        raise NotReadable("two choices are the same")
    return choices


def _answer(value: object, choices: tuple[str, ...]) -> int | None:
    """The right choice, given by its text or its place, counted from 0."""
    if value is None:
        return None
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    raise NotReadable('"answer" is none of the choices (their text, or their place from 0)')


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How given answers are asked about.

    Attributes:
        raw: whether a prompt is text to go on with, without a chat template.
        end: whether it counts that a given answer ends where it does.
        how: one of several choices is chosen.
    """

    raw: bool = False
    end: bool = False
    how: Choosing = Choosing.LIKELIHOOD


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What was found about one item.

    Attributes:
        id: of the item.
        nats: -log p of the text, the answer or the right choice; 0 where there is none.
        size: its bytes.
        tokens: of the model whose tokens are scored.
        windows: how often a text was begun afresh because the context was full.
        greedy: whether generating would have given the answer; None where none is given.
        chosen: which of the choices was taken; None where there are none.
        logps: of each choice, in nats.
        correct: whether the choice is the right one; None where that is not known.
        error: why nothing was found.
    """

    id: str
    nats: float = 0.0
    size: int = 0
    tokens: int = 0
    windows: int = 1
    greedy: bool | None = None
    chosen: int | None = None
    logps: tuple[float, ...] = ()
    correct: bool | None = None
    error: str = ""

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 p per byte of UTF-8."""
        return bits_per_byte(self.nats, self.size)


@dataclass(frozen=True, slots=True)
class Total:
    """Several items together.

    Attributes:
        nats: -log p of all texts, answers and right choices.
        size: their bytes.
        tokens: of the model whose tokens are scored.
        again: how often a text was begun afresh because the context was full.
        failed: items about which nothing was found.
        judged: questions of which the right choice is known.
        right: how many of them were chosen rightly.
    """

    nats: float
    size: int
    tokens: int
    again: int
    failed: int
    judged: int
    right: int

    @classmethod
    def of(cls, items: Sequence[Likelihood]) -> Total:
        """Adds items up."""
        judged = [one.correct for one in items if one.correct is not None]
        return cls(
            nats=math.fsum(one.nats for one in items),
            size=sum(one.size for one in items),
            tokens=sum(one.tokens for one in items),
            again=sum(one.windows - 1 for one in items),
            failed=sum(bool(one.error) for one in items),
            judged=len(judged),
            right=sum(judged),
        )

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 p per byte of UTF-8."""
        return bits_per_byte(self.nats, self.size)

    @property
    def accuracy(self) -> float | None:
        """Share of the right choices among those that are known."""
        return self.right / self.judged if self.judged else None


def bits_per_byte(nats: float, size: int) -> float | None:
    """-log2 p per byte; None of nothing."""
    return nats / math.log(2) / size if size else None


def measure(
    runtime: Runtime,
    items: Sequence[ScoreInput],
    options: GenerateOptions,
    scoring: ScoreOptions | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[Likelihood]:
    """Scores every item by itself.

    Args:
        runtime: with the models that the method needs.
        items: texts, answers and questions.
        options: the method, the alignment and the weight of the contrast.
        scoring: how answers and questions are asked about.
        cancel: asked at every token; true ends the work.

    Yields:
        What was found about each; one that is longer than the context says so.

    Raises:
        Cancelled: `cancel` said so.
    """
    scoring = scoring or ScoreOptions()
    for item in items:
        try:
            yield _measured(runtime, item, options, scoring, cancel)
        except ContextOverflow as error:
            yield Likelihood(item.id, error=str(error))


def _measured(
    runtime: Runtime,
    item: ScoreInput,
    options: GenerateOptions,
    scoring: ScoreOptions,
    cancel: Callable[[], bool] | None,
) -> Likelihood:
    match item:
        case Text():
            text = runtime.score(item.data, options, cancel=cancel)
            return Likelihood(item.id, text.nats, text.size, text.tokens, text.windows)
        case Continuation():
            score = runtime.score_answer(
                item.prompt, item.data, options, raw=scoring.raw, cancel=cancel, end=scoring.end
            )
            return Likelihood(item.id, score.nats, score.size, score.tokens, greedy=score.greedy)
        case ChoiceQuestion():
            return _chosen(runtime, item, options, scoring, cancel)


def _chosen(
    runtime: Runtime,
    item: ChoiceQuestion,
    options: GenerateOptions,
    scoring: ScoreOptions,
    cancel: Callable[[], bool] | None,
) -> Likelihood:
    chosen = runtime.choose(
        item.prompt, item.choices, options, raw=scoring.raw, cancel=cancel, how=scoring.how
    )
    known = item.answer is not None
    scored = chosen.scores[item.answer] if item.answer is not None and chosen.scores else None
    return Likelihood(
        item.id,
        nats=scored.nats if scored else 0.0,
        size=scored.size if scored else 0,
        tokens=scored.tokens if scored else 0,
        chosen=chosen.index,
        logps=chosen.logps,
        correct=chosen.index == item.answer if known else None,
    )
