"""From what answers took to figures: speeds, their spread, and ratios of modes."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from capt_local.evaluate.speed.taken import Drafts, Taken
from capt_local.evaluate.speed.turns import Turns

_FEW = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """What one mode took, over prompts. Answers of one token say nothing about generation.

    Attributes:
        prefill: prompt tokens of the target a second, all models; None if not known.
        prefill_spread: standard deviation of the prompts; 0 for one.
        rate: tokens of the answers a second; None where no answer has two.
        rate_spread: standard deviation of the answers; 0 for one.
        tokens: of all answers that took decoding.
        answers: how many.
        inside: seconds in llama.cpp, None if not known.
        outside: seconds outside it.
        sizes: batches decoded for a token, by role and by what was in them (see `Taken`).
        decoded: tokens of the text decoded for a token, by role.
        drafts: summed; None for a mode without.
    """

    prefill: float | None
    prefill_spread: float
    rate: float | None
    rate_spread: float
    tokens: int
    answers: int
    inside: float | None = None
    outside: float | None = None
    sizes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    decoded: Mapping[str, float] = field(default_factory=dict)
    drafts: Drafts | None = None

    @property
    def passes(self) -> dict[str, float]:
        """Batches decoded for a token, by role."""
        return {role: sum(each.values()) for role, each in self.sizes.items()}

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that were right."""
        if self.drafts is None or not self.drafts.drafted:
            return None
        return self.drafts.accepted / self.drafts.drafted

    @property
    def gated(self) -> float | None:
        """The share of tokens for which expert and base were not asked."""
        if self.drafts is None or not self.tokens:
            return None
        return self.drafts.gated / (self.tokens + self.answers)

    @property
    def outside_share(self) -> float | None:
        """Time outside llama.cpp over time inside."""
        if not self.inside or self.outside is None:
            return None
        return self.outside / self.inside

    @property
    def outside_ms(self) -> float | None:
        """Milliseconds outside llama.cpp for each token."""
        if self.outside is None or not self.tokens:
            return None
        return 1000 * self.outside / self.tokens

    def as_object(self) -> dict[str, object]:
        """For a script."""
        drafts = self.drafts
        return {
            "prefill_tokens_per_s": self.prefill,
            "prefill_tokens_per_s_stdev": self.prefill_spread,
            "generate_tokens_per_s": self.rate,
            "generate_tokens_per_s_stdev": self.rate_spread,
            "forwards_per_token": self.passes,
            "forwards_by_size": {
                role: {str(size): each[size] for size in sorted(each)}
                for role, each in self.sizes.items()
            },
            "positions_per_token": dict(self.decoded),
            "acceptance": self.acceptance,
            "gated": self.gated,
            "outside_decode_share": self.outside_share,
            "outside_decode_ms_per_token": self.outside_ms,
            "tokens": self.tokens,
            "answers": self.answers,
            "drafts": None
            if drafts is None
            else {
                "drafted": drafts.drafted,
                "accepted": drafts.accepted,
                "rounds": drafts.rounds,
                "by_source": {
                    name: {"drafted": offered, "accepted": right}
                    for name, (offered, right) in drafts.by_source.items()
                },
            },
        }


def figures(taken: Sequence[Taken]) -> Figures:
    """What one mode took.

    Args:
        taken: at least one answer.
    """
    read = [(one.prompt_tokens, one.prompt_seconds) for one in taken if one.prompt_seconds]
    counted = [one for one in taken if one.steps]
    rates = [one.rate for one in counted if one.rate is not None]
    tokens, seconds = sum(one.steps for one in counted), sum(one.seconds for one in counted)
    known = [one.inside for one in counted if one.inside is not None]
    inside = sum(known) if known else None
    drafted = [one.drafts for one in counted if one.drafts is not None]
    return Figures(
        prefill=sum(count for count, _ in read) / sum(each for _, each in read) if read else None,
        prefill_spread=_spread([count / each for count, each in read]),
        rate=tokens / seconds if tokens else None,
        rate_spread=_spread(rates),
        tokens=tokens,
        answers=len(counted),
        inside=inside,
        outside=None if inside is None else seconds - inside,
        sizes=_sizes([one.sizes for one in counted], tokens),
        decoded=_per_token([one.decoded for one in counted], tokens),
        drafts=reduce(add, drafted) if drafted else None,
    )


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of one mode over that of another, prompt by prompt.

    Attributes:
        median: over prompts.
        low: the first quartile.
        high: the third.
        stdev: standard deviation; 0 for one prompt.
        pairs: prompts that both answered with two tokens or more.
    """

    median: float
    low: float
    high: float
    stdev: float
    pairs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio | None:
        """From the ratio of each prompt; None for none."""
        if not values:
            return None
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values
        return cls(
            median=statistics.median(values),
            low=quartiles[0],
            high=quartiles[-1],
            stdev=_spread(values),
            pairs=len(values),
        )

    def as_object(self) -> dict[str, object]:
        """For a script."""
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "stdev": self.stdev,
            "pairs": self.pairs,
        }


def ratios(turns: Turns, names: Sequence[str], alone: str) -> dict[str, Ratio]:
    """The speed of answers of each mode over that of one of them.

    Args:
        turns: what all took.
        names: of the modes.
        alone: the one that is compared with; without it there are no ratios.

    Returns:
        By "mode/alone".
    """
    found = {}
    for name in names if alone in names else ():
        pairs = ((one.taken[name].rate, one.taken[alone].rate) for one in turns.rounds)
        ratio = Ratio.of([ours / theirs for ours, theirs in pairs if ours and theirs])
        if name != alone and ratio is not None:
            found[f"{name}/{alone}"] = ratio
    return found


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) >= _FEW else 0.0


def _per_token(counts: Sequence[Mapping[str, int]], tokens: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return {role: count / tokens for role, count in total.items()} if tokens else {}


def _sizes(
    counts: Sequence[Mapping[str, Mapping[int, int]]], tokens: int
) -> dict[str, dict[int, float]]:
    total: dict[str, Counter[int]] = defaultdict(Counter)
    for one in counts:
        for role, sizes in one.items():
            total[role].update(sizes)
    return {
        role: {size: count / tokens for size, count in sizes.items()}
        for role, sizes in total.items()
    }
