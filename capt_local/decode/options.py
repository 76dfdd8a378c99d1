"""How an answer is made: small frozen parameters that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from capt_local.errors import UsageError


class Method(StrEnum):
    """Which distribution the answer is drawn from."""

    CAPT = "capt"
    TARGET = "target"
    EXPERT = "expert"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class AlignOptions:
    """Parts of the projection of a proxy's row onto the target's tokens (METHOD.md).

    Attributes:
        long_tokens: a target token longer than every piece that could start it gets the
            probability of its first piece.
        healing: the proxy's last piece may have been the start of a longer one.
    """

    long_tokens: bool = True
    healing: bool = True


@dataclass(frozen=True, slots=True)
class CombineOptions:
    """The weight of the contrast.

    Attributes:
        alpha: a fixed weight, or None: mixed over `grid` by the evidence of the prompt.
        plausibility: tokens with p_target < plausibility * max p_target get no contrast and are
            never chosen.
        grid: the weights that the evidence chooses among; holds 0, so that the target alone is
            always one of them.
        evidence_tokens: how many of the last tokens that the user wrote are the evidence.
    """

    alpha: float | None = None
    plausibility: float = 1e-5
    grid: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    evidence_tokens: int = 64

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        if self.alpha is not None and not -8.0 <= self.alpha <= 8.0:
            raise UsageError(f"--alpha {self.alpha} is not between -8 and 8.")
        if not 0.0 <= self.plausibility <= 1.0:
            raise UsageError(f"--plausibility {self.plausibility} is not between 0 and 1.")
        if 0.0 not in self.grid or not all(-8.0 <= alpha <= 8.0 for alpha in self.grid):
            raise UsageError("The grid of weights needs 0 in it, and nothing beyond -8 and 8.")
        if self.evidence_tokens < 0:
            raise UsageError("The evidence cannot have a negative length.")


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How a token is drawn from the combined distribution.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest that together reach this probability.
        min_p: keep those with at least this share of the largest probability.
        repeat_penalty: > 1 makes tokens of the last `repeat_window` less likely.
        repeat_window: how far the repetition penalty looks back, in tokens.
        seed: of the random draws; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        checks = {
            f"--temp {self.temperature} is not 0 or above.": not 0 <= self.temperature < math.inf,
            f"--top-k {self.top_k} is negative.": self.top_k < 0,
            f"--top-p {self.top_p} is not above 0 and at most 1.": not 0 < self.top_p <= 1,
            f"--min-p {self.min_p} is not between 0 and 1.": not 0 <= self.min_p <= 1,
            f"--repeat-penalty {self.repeat_penalty} is not above 0.": not (
                0 < self.repeat_penalty < math.inf
            ),
            f"--seed {self.seed} is negative.": self.seed < 0,
            f"--repeat-last-n {self.repeat_window} is negative.": self.repeat_window < 0,
        }
        for message, wrong in checks.items():
            if wrong:
                raise UsageError(message)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Everything that decides an answer besides the models and the prompt.

    Attributes:
        max_tokens: the answer ends with `length` after so many tokens.
        stop: strings that end the answer and are not part of it.
        top: how many candidates each step reports for each model; 0 reports none.
    """

    method: Method = Method.CAPT
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    top: int = 0
    align: AlignOptions = field(default_factory=AlignOptions)
    combine: CombineOptions = field(default_factory=CombineOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens {self.max_tokens} is below 1.")
        if any(not text for text in self.stop):
            raise UsageError("A stop string is empty.")
