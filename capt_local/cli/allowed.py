"""What a site forbids, asked where no option is: commands of a chat, weights however they came."""

from __future__ import annotations

from capt_local.config.limits import Feature
from capt_local.config.read import read_site
from capt_local.decode.options import CombineOptions


def check_weights(combine: CombineOptions) -> None:
    """Refuses fixed weights that the site forbids.

    Raises:
        UsageError: one is wider than the site allows.
    """
    read_site().limits.check_weights((*combine.alphas, *combine.powers))


def check_pull(what: str) -> None:
    """Refuses to download where the site forbids that.

    Args:
        what: the command that asks, for the error.

    Raises:
        UsageError: it is forbidden.
    """
    read_site().limits.refuse(Feature.PULL, what)


def check_unsigned(what: str) -> None:
    """Refuses models that nobody has signed where the site forbids these.

    Args:
        what: the models, for the error.

    Raises:
        UsageError: they are forbidden.
    """
    read_site().limits.refuse(Feature.UNSIGNED, what)


def check_transcript(what: str) -> None:
    """Refuses to write a conversation down where the site forbids that.

    Args:
        what: the command that asks, for the error.

    Raises:
        UsageError: it is forbidden.
    """
    read_site().limits.refuse(Feature.TRANSCRIPTS, what)
