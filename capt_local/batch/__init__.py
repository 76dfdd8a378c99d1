"""Many records: an answer to each, resumable (docs/batch.md)."""

from __future__ import annotations

from enum import StrEnum


class InputFormat(StrEnum):
    """How records are written. Here, since the command line's help needs nothing else."""

    JSONL = "jsonl"
    CSV = "csv"
    TXT_DIR = "txt-dir"
