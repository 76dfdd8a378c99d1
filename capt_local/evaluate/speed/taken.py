"""What one answer took, and who makes answers to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from capt_local.evaluate.speed.questions import Question


@dataclass(frozen=True, slots=True)
class Drafts:
    """How an answer was drafted.

    Attributes:
        drafted: tokens that were offered and checked.
        accepted: those of them that were right.
        gated: steps at which expert and base were not asked.
        rounds: checks of a draft.
        by_source: (offered, right) of each draft source.
    """

    drafted: int = 0
    accepted: int = 0
    gated: int = 0
    rounds: int = 0
    by_source: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: Drafts) -> Drafts:
        """Both together."""
        names = dict.fromkeys([*self.by_source, *other.by_source])
        each = {
            name: (
                self.by_source.get(name, (0, 0))[0] + other.by_source.get(name, (0, 0))[0],
                self.by_source.get(name, (0, 0))[1] + other.by_source.get(name, (0, 0))[1],
            )
            for name in names
        }
        return Drafts(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.gated + other.gated,
            self.rounds + other.rounds,
            each,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """What one answer took.

    Attributes:
        prompt_tokens: of the target.
        prompt_seconds: for the prompt, all models; None where some of it was there already.
        tokens: of the answer, in the target's vocabulary.
        seconds: for the answer behind the prompt.
        logps: of each token in the distribution that it was chosen from; empty if not known.
        inside: the part of `seconds` in llama.cpp; None if not known.
        sizes: batches that were decoded for the answer, by role and by what was in them: tokens of
            the text, and those that filled them up.
        decoded: tokens of the text in these batches, by role.
        drafts: None for a mode without.
    """

    prompt_tokens: int
    prompt_seconds: float | None
    tokens: tuple[int, ...]
    seconds: float
    logps: tuple[float, ...] = ()
    inside: float | None = None
    sizes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    decoded: Mapping[str, int] = field(default_factory=dict)
    drafts: Drafts | None = None

    @property
    def steps(self) -> int:
        """Tokens that took decoding: the first one comes from what the prompt left."""
        return max(len(self.tokens) - 1, 0)

    @property
    def rate(self) -> float | None:
        """Tokens a second, as llama-bench counts them; None for an answer of one token."""
        return self.steps / self.seconds if self.steps else None


class Mode(Protocol):
    """A way of making answers."""

    def answer(self, question: Question) -> Taken:
        """Answers one question with nothing left of the one before.

        Raises:
            ContextOverflow: it does not fit; nothing was computed.
            Cancelled: the user stopped it.
        """
        ...
