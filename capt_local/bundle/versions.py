"""Versions that can be compared: numbers with dots between them."""

from __future__ import annotations

import re

_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")


def numbers(version: str) -> tuple[int, ...] | None:
    """The numbers of a version without zeros at its end; None where it is no such version."""
    if not _VERSION.fullmatch(version):
        return None
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def is_older(one: str, other: str) -> bool:
    """Whether a version comes before another; not where one of them cannot be compared."""
    left, right = numbers(one), numbers(other)
    return left is not None and right is not None and left < right
