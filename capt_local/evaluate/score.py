"""What `score` reads and computes: texts, answers after a prompt, and questions with choices.

A line of JSON Lines is `{id, text}`, `{id, prompt | messages, continuation | completion}` or
`{id, prompt | messages, choices, answer}`; `id` and `answer` may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import ContextOverflow, UsageError
from capt_local.prompting.messages import Message, messages_of
from capt_local.strict_json import (
    ParseError,
    Problems,
    convert,
    lines,
    parse_object,
    read_bytes,
    utf8,
)

if TYPE_CHECKING:
    from capt_local.decoding.scoring import ChoiceCriterion
    from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A text, an answer after a prompt, or a prompt with several answers."""

    id: str  # the number of the line if it has none
    line: int  # from 1
    data: bytes = b""  # the text or the answer in UTF-8; empty where there are choices
    prompt: str | tuple[Message, ...] | None = None  # None of a text
    choices: tuple[str, ...] = ()
    answer: int | None = None  # the place of the right choice, if it is known
    cut: bool = False  # whether the text was cut on request


def read_score_items(
    path: Path, what: str, *, raw: bool = False, limit: int | None = None, size: int | None = None
) -> list[ScoreItem]:
    """Reads `.jsonl` (see above), or any other file as one text; all of its lines are checked.

    Errors call the file `what`: its name may be a patient's. `raw` prompts are texts to go on with:
    they may be empty, but not `messages`. `size` is how many bytes of each text are read.

    Raises:
        UsageError: the file cannot be read, or lines are not as they should be; the first is
            reported with its number, and how many more there are.
    """
    data = read_bytes(path, what, pipes=True)
    problems, found = Problems(what), dict[str, ScoreItem]()
    if path.suffix.lower() != ".jsonl":
        try:
            return [_text(1, "1", utf8(data), size)]
        except ParseError as error:
            problems.fail(str(error))
    for number, line in lines(data):
        try:
            item = _item(number, parse_object(line), raw=raw, size=size)
            if item.id in found:
                raise ParseError(f"its id is that of line {found[item.id].line}")
        except ParseError as error:
            problems.add(number, error)
        else:
            found[item.id] = item
    problems.raise_first()
    if not found:
        raise UsageError(f"{what} holds no text.")
    return list(found.values())[:limit]


class _ScoreLine(msgspec.Struct):
    id: str | int | None = None
    text: str | None = None
    continuation: str | None = None
    completion: str | None = None
    choices: tuple[str, ...] | None = None
    answer: str | int | None = None
    prompt: str | None = None


def _item(number: int, value: Mapping[str, object], *, raw: bool, size: int | None) -> ScoreItem:
    row = convert(value, _ScoreLine)
    kinds = [key for key in ("text", "continuation", "completion", "choices") if key in value]
    if not kinds:
        raise ParseError('no "text", "continuation" or "choices"')
    if len(kinds) > 1:
        raise ParseError(f'"{kinds[0]}" and "{kinds[1]}" do not go together')
    id = str(number if row.id is None else row.id)
    if "text" in value:
        if "prompt" in value or "messages" in value:
            raise ParseError('a "text" has no prompt before it; name it "continuation"')
        return _text(number, id, row.text or "", size)
    if size is not None:
        raise ParseError("--max-bytes cuts texts alone, and this is an answer")
    if ("prompt" in value) == ("messages" in value):
        raise ParseError('either "prompt" or "messages" is needed')
    if "messages" in value and raw:
        raise ParseError('"messages" have no raw form: give a "prompt", or leave out --raw')
    prompt = messages_of(value["messages"]) if "messages" in value else row.prompt or ""
    if isinstance(prompt, str) and not raw and not prompt.strip():
        raise ParseError("the prompt is empty")
    if row.choices is not None:
        return ScoreItem(id, number, b"", prompt, row.choices, _right(row.answer, row.choices))
    answer = row.continuation or row.completion
    if not answer:
        raise ParseError(f"the {kinds[0]} is empty")
    return ScoreItem(id, number, answer.encode(), prompt)


def _text(number: int, id: str, text: str, size: int | None) -> ScoreItem:
    """A text of at most `size` bytes, in whole characters."""
    if not text:
        raise ParseError("the text is empty")
    data = text.encode()
    if size is None or len(data) <= size:
        return ScoreItem(id, number, data)
    beginning = data[:size].decode("utf-8", "ignore").encode()
    if not beginning:
        raise ParseError(f"the first character is longer than {size} bytes; allow more")
    return ScoreItem(id, number, beginning, cut=True)


def _right(answer: str | int | None, choices: tuple[str, ...]) -> int | None:
    """The right choice, from its text or its place, counted from 0."""
    if len(choices) < 2:
        raise ParseError("there are fewer than two choices")
    if "" in choices:
        raise ParseError("a choice is empty")
    if len(set(choices)) < len(choices):
        raise ParseError("two choices are the same")
    if answer is None or (isinstance(answer, int) and 0 <= answer < len(choices)):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    raise ParseError('"answer" is none of the choices (their text, or their place from 0)')


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The result of one item; figures are of the text, the answer or the right choice."""

    id: str
    nats: float = 0.0  # -log p
    size: int = 0  # bytes
    tokens: int = 0  # of the model whose tokens are scored
    windows: int = 1  # context windows of a text, more than one if the context was full
    greedy: bool | None = None  # whether generating would have given the answer
    chosen: int | None = None
    logps: tuple[float, ...] = ()  # of each choice, in nats
    correct: bool | None = None  # None where that is not known
    error: str = ""  # why nothing was found


def bits_per_byte(items: Sequence[ItemScore]) -> float | None:
    """-log2 p per byte of all items together; None of nothing."""
    size = sum(one.size for one in items)
    return math.fsum(one.nats for one in items) / math.log(2) / size if size else None


def measure(
    runtime: Runtime,
    items: Sequence[ScoreItem],
    options: GenerateOptions,
    how: ChoiceCriterion,
    *,
    raw: bool = False,
    end: bool = False,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[ItemScore]:
    """Scores every item by itself; one that exceeds the context has an error.

    With `raw` a prompt is continued without a template; with `end` the end of an answer is scored
    too. `cancel` is called at every token; true raises Cancelled.
    """

    def scored(item: ScoreItem) -> ItemScore:
        if item.prompt is None:
            text = runtime.score(item.data, options, cancel=cancel)
            return ItemScore(item.id, text.nats, text.size, text.tokens, text.windows)
        if not item.choices:
            score = runtime.score_answer(
                item.prompt, item.data, options, raw=raw, cancel=cancel, end=end
            )
            return ItemScore(item.id, score.nats, score.size, score.tokens, greedy=score.greedy)
        chosen = runtime.choose(item.prompt, item.choices, options, raw=raw, cancel=cancel, how=how)
        found = ItemScore(item.id, chosen=chosen.index, logps=chosen.logps)
        if item.answer is None:
            return found
        right, correct = chosen.scores[item.answer], chosen.index == item.answer
        return replace(
            found, nats=right.nats, size=right.size, tokens=right.tokens, correct=correct
        )

    for item in items:
        try:
            yield scored(item)
        except ContextOverflow as error:
            yield ItemScore(item.id, error=str(error))
