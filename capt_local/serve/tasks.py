"""The library of tasks of the page: what may be asked about a note, as data files.

A task is a TOML file; those of the site lie in a folder of its own and win over ours of the same
name. They are instructions, not code: the page puts one behind the note, and sends both.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from capt_local.decoding.structured import schema_structure
from capt_local.errors import UsageError
from capt_local.strict_json import NotReadable, convert, read_bytes, utf8

_LARGEST = 1 << 16
_MOST = 100


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task.

    Attributes:
        name: of its file.
        title: on its button.
        prompt: the instruction that follows the note; empty: the user types it.
        hint: a line about it.
        order: the smaller the further in front.
        max_tokens: of the answer; None: as the server has it.
        json_schema: the form of the answer, as the text of a JSON schema; a list of objects in it
            is shown as a table.
    """

    title: Annotated[str, Meta(min_length=1, max_length=60)]
    prompt: Annotated[str, Meta(max_length=8000)] = ""
    hint: Annotated[str, Meta(max_length=300)] = ""
    order: int = 100
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    json_schema: str = ""
    name: str = ""


def library(folder: Path | None = None) -> list[Task]:
    """All tasks in their order, those in the folder of the site too.

    Raises:
        UsageError: the folder or a file cannot be read, or is no task; names the file.
    """
    found: dict[str, Task] = {}
    for entry in (resources.files("capt_local.serve") / "tasks").iterdir():
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = _task(entry.read_bytes(), name)
    if folder is not None:
        try:
            files = sorted(folder.glob("*.toml"))
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror}.") from None
        if not folder.is_dir():
            raise UsageError(f"{folder} (--tasks) is no folder.")
        if len(files) > _MOST:
            raise UsageError(f"{folder} has more than {_MOST} tasks.")
        for file in files:
            data = read_bytes(file, str(file), largest=_LARGEST)
            found[file.stem] = _task(data, file.stem)
    return sorted(found.values(), key=lambda task: (task.order, task.title))


def _task(data: bytes, name: str) -> Task:
    try:
        fields: dict[str, Any] = tomllib.loads(utf8(data))
        task = convert(fields | {"name": name}, Task)
    except (tomllib.TOMLDecodeError, NotReadable, RecursionError) as error:
        what = f": {error}" if isinstance(error, NotReadable) else " (it is not TOML)"
        raise UsageError(f"The task {name}.toml cannot be used{what}.") from None
    if task.json_schema:
        schema_structure(task.json_schema.encode(), f"The json_schema of the task {name}.toml")
    return task
