"""The record of one choice: what was said, and what the target alone would have said."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    INTERRUPTED = "interrupted"
    ERROR = "error"
    ABSTAINED = "abstained"  # nothing is answered: what was written has no source


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate token with its log-probability (nats) under one model."""

    token: int
    piece_bytes: bytes
    logp: float

    @property
    def piece(self) -> str:
        """The same as text; a part of a character is U+FFFD."""
        return self.piece_bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer. All log-probabilities are natural logarithms.

    Attributes:
        index: position in the answer, from 0.
        token: id in the target's vocabulary.
        piece_bytes: what the token adds to the answer; nothing for an end or control token. Bytes
            that might begin a stop string are held back until it is known, so the bytes of the
            steps joined are the answer.
        logp: log-probability under the combined distribution, before temperature and cuts.
        target_logp, target_rank: under the target alone; rank 0 is its own choice.
        target_choice: the token that the target alone finds likeliest after the same text.
        contrast: logp_expert - logp_base of the token's event; 0 without proxies, None where they
            were not asked.
        expert_logp, base_logp: of that event; None where no candidates were asked for.
        top, target_top: the likeliest tokens of the combination, and of the target.
        expert_top, base_top: the likeliest pieces of the proxies, in their own vocabulary.
        likeliest: the token that the combination finds likeliest, which a draw may pass over; None
            where that is the token itself.
        finish: set on the last step alone.
        thought: whether `piece` belongs to the model's thoughts, not to its answer. The tokens of
            the markers have no bytes.
        proxies_skipped: whether expert and base did not run, since they could not change the
            choice, had no weight or, with `Speed.FAST`, hardly counted.
        piece: the same bytes as text. A character that ends in a later token belongs to that token,
            so the pieces joined are the answer, too.
    """

    index: int
    token: int
    piece_bytes: bytes
    logp: float
    target_logp: float
    target_rank: int
    target_choice: Choice
    contrast: float | None = 0.0
    top: tuple[Choice, ...] = ()
    target_top: tuple[Choice, ...] = ()
    expert_top: tuple[Choice, ...] = ()
    base_top: tuple[Choice, ...] = ()
    expert_logp: float | None = None
    base_logp: float | None = None
    likeliest: int | None = None
    finish: FinishReason | None = None
    thought: bool = False
    proxies_skipped: bool = False
    piece: str = field(default="", compare=False)

    @property
    def changed(self) -> bool:
        """Whether the likeliest token after the same text is another one than for the target.

        At temperature 0 that is whether the target alone would have said something else.
        """
        likeliest = self.token if self.likeliest is None else self.likeliest
        return likeliest != self.target_choice.token


@dataclass(slots=True)
class DraftCount:
    """Of one source: drafts that were read, tokens in them, and those that were chosen."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class DraftStats:
    """What drafts and skipped proxies did for one answer.

    Attributes:
        steps: tokens that were chosen.
        proxies_skipped: those for which expert and base did not run.
        passes, decoded: calls that decoded something for the answer, and tokens in them, by role.
    """

    steps: int = 0
    proxies_skipped: int = 0
    by_source: dict[str, DraftCount] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    decoded: dict[str, int] = field(default_factory=dict)

    def add(self, role: str, passes: int, decoded: int) -> None:
        """Counts what a model did."""
        self.passes[role] = self.passes.get(role, 0) + passes
        self.decoded[role] = self.decoded.get(role, 0) + decoded

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
