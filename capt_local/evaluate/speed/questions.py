"""What is asked while speed is measured: items of a task, texts, or a text of our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from capt_local.errors import UsageError
from capt_local.evaluate.reading.texts import is_lines, text_of, whole_file
from capt_local.evaluate.runs.exam import shortened
from capt_local.evaluate.tasks.items import Item, Kind
from capt_local.evaluate.tasks.styles import Style, read_style
from capt_local.evaluate.tasks.task import Task, read_task
from capt_local.prompt.messages import Message
from capt_local.strict.files import read_bytes
from capt_local.strict.json import lines, parse_object
from capt_local.strict.problems import NotReadable, Problems

_STYLE = "zero-shot"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt.

    Attributes:
        asked: a question, a conversation, or a text to go on with.
        raw: whether it is the latter.
        length: of the answer, whatever is said; None: it ends by itself.
    """

    asked: str | tuple[Message, ...]
    raw: bool = False
    length: int | None = None


def read_questions(
    path: Path, what: str, *, limit: int | None = None, size: int | None = None, raw: bool = False
) -> list[Question]:
    """The prompts of a file.

    Args:
        path: a task as `capt-local eval` takes it (its items are asked as there, zero-shot), JSON
            Lines with a `prompt` or `text` each, or a text file, which is one prompt.
        what: what errors call the file; its name may be a patient's.
        limit: only the first so many.
        size: only so many bytes of each input (never a part of a character).
        raw: asks without a chat template.

    Raises:
        UsageError: the file cannot be read, or a line is not as it should be (with its number).
    """
    if path.is_dir():
        return _of_task(read_task(path, what=what), limit, size, raw=raw)
    data = read_bytes(path, what, pipes=not is_lines(path))
    if not is_lines(path):
        return [Question(whole_file(data, what, size).data.decode(), raw)]
    if _is_task(data):
        return _of_task(read_task(path, what=what), limit, size, raw=raw)
    problems, found = Problems(what), list[Question]()
    for number, line in lines(data):
        if limit is not None and len(found) == limit:
            break
        try:
            found.append(Question(_text(parse_object(line), number, size), raw))
        except NotReadable as error:
            problems.add(number, error)
    problems.settle()
    if not found:
        raise UsageError(f"{what} holds no prompt.")
    return found


def standard_text(count: Callable[[bytes], int], tokens: int) -> str:
    """The beginning of invented notes that takes about so many tokens, and not more.

    Args:
        count: tokens that a text takes as a prompt.
        tokens: at least as many as the shortest text takes.

    Raises:
        UsageError: the notes are not as long, or one character is longer.
    """
    notes = notes_text()
    if count(notes) < tokens:
        raise UsageError(
            f"The text that bench measures on is {count(notes)} tokens long in this target, which "
            f"is less than the {tokens} that --prompt-tokens asks for."
        )
    least, most = 0, len(notes)
    while most - least > 1:  # a longer text may take fewer tokens, but hardly
        middle = (least + most) // 2
        if count(notes[:middle]) <= tokens:
            least = middle
        else:
            most = middle
    if not least:
        raise UsageError(f"A prompt of {tokens} tokens is too short to measure; allow more.")
    return notes[:least].decode()


def notes_text() -> bytes:
    """Invented visits and notes, in ASCII."""
    return (resources.files("capt_local") / "data" / "bench_notes.txt").read_bytes().strip()


def _is_task(data: bytes) -> bool:
    """Whether the first line is an item of a task; what is wrong with it is told later."""
    for _, line in lines(data):
        try:
            return {"task", "kind"} <= set(parse_object(line))
        except NotReadable:
            return False
    return False


def _of_task(task: Task, limit: int | None, size: int | None, *, raw: bool) -> list[Question]:
    task, _ = shortened(task, size)
    items = task.items[:limit]
    if task.kind is Kind.PERPLEXITY:
        return [Question(item.input, raw) for item in items]
    style = read_style(_STYLE)
    return [_of_item(item, task, style, raw=raw) for item in items]


def _of_item(item: Item, task: Task, style: Style, *, raw: bool) -> Question:
    if raw:
        return Question(style.text(item, task), raw=True)
    return Question(tuple(style.messages(item, task)))


def _text(value: dict[str, object], number: int, size: int | None) -> str:
    if "prompt" in value and "text" in value:
        raise NotReadable('both "prompt" and "text"')
    if "prompt" in value:
        value = {**value, "text": value["prompt"]}
    return text_of(value, number, size).data.decode()
