"""What a site forbids to everybody who uses this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from capt_local.errors import UsageError

# Below this a limit would not hold: the evidence of a prompt weighs an expert by up to 1 by itself.
LEAST_ALPHA = 1.0


class Feature(StrEnum):
    """What can be forbidden."""

    TRANSCRIPTS = "transcripts"
    """Files that hold conversations: --transcript, /save."""
    REPORTS = "reports"
    """Pages about answers: --html."""
    NETWORK = "network"
    """Whatever opens a port or a connection."""
    PULL = "pull"
    """Downloads of models: `models pull`. Where the network is forbidden, so are they."""
    UNSIGNED = "unsigned-bundles"
    """Models that no key of the site has signed: unsigned bundles, files given by their paths."""


_WIDER = {Feature.PULL: Feature.NETWORK}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a site.

    Attributes:
        file: that they come from, for errors.
        forbidden: what nobody may use.
        alpha: the largest fixed weight of an expert or base; None: the program's own limit.
    """

    file: Path
    forbidden: frozenset[Feature] = frozenset()
    alpha: float | None = None

    def forbids(self, feature: Feature) -> bool:
        """Whether nobody may use it, by its own name or a wider one."""
        return bool(self.forbidden & {feature, _WIDER.get(feature, feature)})

    def refuse(self, feature: Feature, what: str) -> None:
        """Refuses what is forbidden.

        Args:
            feature: that is asked for.
            what: the flag or command that asks, for the error.

        Raises:
            UsageError: it is forbidden.
        """
        if self.forbids(feature):
            named = feature if feature in self.forbidden else _WIDER[feature]
            raise UsageError(f"{what} is forbidden here: {self.file} forbids {named}.")

    def check_weights(self, weights: Iterable[float]) -> None:
        """Refuses weights that are wider than the site allows.

        Args:
            weights: fixed weights of contrasts, or exponents.

        Raises:
            UsageError: one is.
        """
        if self.alpha is not None and any(abs(weight) > self.alpha for weight in weights):
            raise UsageError(
                f"A weight beyond {self.alpha:g} is forbidden here: limits.alpha in {self.file}."
            )
