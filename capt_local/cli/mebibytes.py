"""Bytes for people."""

from __future__ import annotations


def mebibytes(count: int) -> str:
    """A number of bytes as MiB, rounded."""
    return f"{count / (1 << 20):,.0f} MiB"
