"""A table of structured answers: a column a field, and beside it where the note has its value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from capt_local.batch.output import answer_text

_ACTS = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for a formula
ANSWER = "answer"


def answers_table(lines: Iterable[bytes]) -> str:
    """CSV of the answers of an output, one row a record, in its order.

    Columns: id, status (`ok` or the code of the error), and for each field of any answer its value
    and `FIELD source`: its place in the note in characters, with the page ("120-127 p. 2"), or
    "unsupported". Free text is the one field `answer`. A text that a spreadsheet would run as a
    formula has an apostrophe in front.

    Args:
        lines: of the output, as `output.OutputLine.encode` writes them.
    """
    rows = [_row(json.loads(line)) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(names) or ["id", "status"], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _row(line: Mapping[str, Any]) -> dict[str, str]:
    error = line.get("error")
    row = {"id": line["id"], "status": error["code"] if error else "ok"}
    if line.get("response") is None:
        return row
    text = answer_text(line["response"]["body"]["choices"][0])
    try:
        fields = dict(_fields(json.loads(text), ""))
    except ValueError:
        fields = {}
    sources = (line.get("capt") or {}).get("sources") or {}
    places = {fact["path"]: fact for fact in sources.get("facts", ()) if fact["path"]}
    for path, value in fields.items():
        row[path] = _cell(value)
        row[f"{path} source"] = _place(places[path]) if path in places else ""
    return row if fields else {**row, ANSWER: _cell(text)}


def _fields(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Each value of a JSON object by its path, as `medications[0].dose`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _fields(inner, f"{path}[{place}]")
    elif path:
        yield path, value


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_ACTS) else text


def _place(fact: Mapping[str, Any]) -> str:
    if fact["source"] is None:
        return "unsupported"
    start, end = fact["source"]
    return f"{start}-{end}" + (f" p. {fact['page']}" if fact["page"] else "")
