"""Text as the parsers find it, and its letters and spaces made plain."""

from __future__ import annotations

import re

# Ligatures as letters, no-break spaces as spaces; what is invisible or no text at all is dropped.
_CLEANED = {
    0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st",
    0xFB06: "st", 0xA0: " ", 0x202F: " ", 0x2011: "-", 0xAD: None, 0x200B: None, 0xFEFF: None,
    0x2060: None, 0x0D: None, 0x0B: "\n", 0x0C: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n",
    **{code: None for code in (*range(9), *range(0x0E, 0x20), 0x7F, 0xFFFE, 0xFFFF)},
}  # fmt: skip
# Symbol fonts have their bullets at codes of their own.
_BULLET = re.compile(r"^\s*[\ue000-\uf8ff\u2022\u00b7\u25aa]\s+")


class Refused(Exception):
    """The document is not read; the argument is a key of `document.REFUSALS`."""


class Found:
    """Text as it is found."""

    def __init__(self) -> None:
        self.pages: list[str] = []  # their texts, or one of the whole
        self.paged = False
        self.notices: dict[str, int] = {}  # counts by the key of `document._NOTICES`

    def note(self, name: str, count: int = 1) -> None:
        """Counts what the user is told of."""
        self.notices[name] = self.notices.get(name, 0) + count


def tidy(text: str) -> str:
    """Text with plain letters and spaces, at most one empty line at once, none at the ends."""
    text = text.translate(_CLEANED).encode("utf-8", "replace").decode()
    lines: list[str] = []
    for line in text.split("\n"):
        line = _BULLET.sub("- ", re.sub(r"(?<=\S) +", " ", line)).rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")


def raised(before: str, text: str) -> str:
    """Superscript text behind other text: an exponent does not become part of a number."""
    if not text.strip().lstrip("+-\u2212").isdigit():
        return text
    return f"^{text}" if before[-1:].isalnum() else f"[{text}]"
