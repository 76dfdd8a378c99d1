"""What stands around the thoughts of a model that thinks before it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands where thoughts begin and end, control tokens as their names.

    Attributes:
        begin: what may stand at the beginning of an answer, and whether thoughts follow it.
        within: what may stand behind thoughts, and whether more thoughts follow it.
    """

    begin: tuple[tuple[bytes, bool], ...]
    within: tuple[tuple[bytes, bool], ...]

    def opened_by(self, scaffold: bytes) -> bool:
        """Whether the template has opened the thoughts.

        Args:
            scaffold: what it wrote behind the last message.
        """
        end = scaffold.rstrip()
        return any(end.endswith(marker) for marker, thinks in self.begin if thinks)
