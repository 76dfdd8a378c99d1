"""Stop strings in a stream of bytes."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets bytes through until a stop string comes; holds back what might begin one.

    Args:
        texts: the strings, none of them empty.

    Attributes:
        found: whether one of them has come.
        held: bytes that might begin one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Starts with nothing held."""
        self._stops = [text.encode() for text in texts]
        self.found = False
        self.held = b""

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes; returns those that are certainly part of the answer."""
        text = self.held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, b""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        """Gives out what is held: no more text will come."""
        text, self.held = self.held, b""
        return text


def _overlap(text: bytes, stop: bytes) -> int:
    """The longest end of `text` that is a true beginning of `stop`."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
