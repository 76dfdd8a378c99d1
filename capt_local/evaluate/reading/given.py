"""What `score` reads: texts, answers that are given after a prompt, and questions with choices.

A line of JSON Lines is `{id, text}`, `{id, prompt | messages, continuation | completion}` or
`{id, prompt | messages, choices, answer}`; `id` and `answer` may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.reading.records import identifier, texts
from capt_local.evaluate.reading.texts import Text, is_lines, text_of, whole_file
from capt_local.prompting.messages import Message, messages_of
from capt_local.strict.files import read_bytes
from capt_local.strict.json import lines, parse_object
from capt_local.strict.problems import NotReadable, Problems


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
class Question:
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


Given = Text | Continuation | Question


def read_given(
    path: Path, what: str, *, raw: bool = False, limit: int | None = None, size: int | None = None
) -> list[Given]:
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
    problems, found = Problems(what), list[Given]()
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
    problems.settle()
    if not found:
        raise UsageError(f"{what} holds no text.")
    return found[:limit]


def _item(number: int, value: Mapping[str, object], *, raw: bool, size: int | None) -> Given:
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
        return Question(name, prompt, choices, _answer(value.get("answer"), choices), number)
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
