"""Inputs made in code, and what the check says about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.batch.readers import InputErrors, InputSource, check_input
from capt_local.batch.records import BatchRecord, RecordParser, RecordTemplate
from capt_local.errors import UsageError

CANARY = "zyzzyva"  # a word of the patient's text


def line(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def short(id: object = "r1", prompt: str = CANARY, **more: Any) -> bytes:
    return line(id=id, prompt=prompt, **more)


def written(folder: Path, data: bytes, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def checked(path: Path, template: str | None = None, **how: Any) -> InputSource:
    """The source; `how` goes to `RecordParser`."""
    filled = None if template is None else RecordTemplate(template.encode())
    return check_input(path, parser=RecordParser(template=filled, **how))


def records(source: InputSource) -> list[BatchRecord]:
    return [source.record(place) for place in range(len(source))]


def refused(path: Path, template: str | None = None, **how: Any) -> UsageError:
    """The error, which tells nothing of the text."""
    with pytest.raises(UsageError) as caught:
        checked(path, template, **how)
    assert CANARY not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def problems(path: Path, template: str | None = None, **how: Any) -> tuple[str, ...]:
    """What is wrong with each record, in order: "line 3: not JSON"."""
    error = refused(path, template, **how)
    assert isinstance(error, InputErrors)
    return expanded(error, "file" if path.is_dir() else "line")


def expanded(error: InputErrors, unit: str = "line") -> tuple[str, ...]:
    pairs = [(number, why) for why, numbers in error.numbers.items() for number in numbers]
    return tuple(f"{unit} {number}: {why}" for number, why in sorted(pairs))
