"""What a measurement found: a Markdown table, or the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: a line above it.
        columns: headings.
        rows: cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Refuses rows of another length."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row is not as long as the headings")

    def markdown(self) -> str:
        """The table with its title."""
        lines = [self.columns, tuple("---" for _ in self.columns)]
        lines += [tuple(map(_written, row)) for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.title}\n\n{body}\n"


def told(tables: Sequence[Table], *, as_json: bool) -> str:
    """All tables as one text."""
    if as_json:
        return json.dumps([asdict(table) for table in tables], ensure_ascii=False)
    return "\n".join(table.markdown() for table in tables)


def _written(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 100 else f"{cell:.1f}"
    return str(cell)
