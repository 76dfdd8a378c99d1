"""What drafting and the gate did for one answer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Count:
    """Of one source of drafts.

    Attributes:
        rounds: drafts that were checked.
        drafted: tokens in them.
        accepted: those that were chosen.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Tally:
    """Of one answer.

    Attributes:
        steps: tokens that were chosen.
        gated: those at which one token alone was plausible and expert and base were not asked.
        by_source: of each source that drafted something.
        passes: calls that decoded something for the answer, by role.
        decoded: tokens that they decoded, by role.
        notices: what the user should know.
    """

    steps: int = 0
    gated: int = 0
    by_source: dict[str, Count] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    decoded: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def add(self, role: str, passes: int, decoded: int) -> None:
        """Counts what a model did."""
        self.passes[role] = self.passes.get(role, 0) + passes
        self.decoded[role] = self.decoded.get(role, 0) + decoded

    @property
    def rounds(self) -> int:
        """Drafts that were checked."""
        return sum(count.rounds for count in self.by_source.values())

    @property
    def drafted(self) -> int:
        """Tokens in them."""
        return sum(count.drafted for count in self.by_source.values())

    @property
    def accepted(self) -> int:
        """Those that were chosen."""
        return sum(count.accepted for count in self.by_source.values())

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were chosen; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    def forwards_per_token(self) -> dict[str, float]:
        """How often each model ran for a token of the answer, by role."""
        return {role: count / max(self.steps, 1) for role, count in self.passes.items()}
