"""The part of a card that the program can write: what it read off the files, and what it measured.

The rest is for whoever answers for the bundle.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from capt_local.cli.models.create_look import Look
from capt_local.cli.models.create_measure import QUESTION, Measured
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


def card_of(
    bundle: Bundle,
    looks: Mapping[str, Look],
    facts: Mapping[str, Any],
    run: Measured | None,
    today: datetime.date,
) -> dict[str, str]:
    """The texts of a card, by their keys.

    Args:
        bundle: with the texts that the user gave, which stay.
        looks: what the files say of themselves, by role.
        facts: see `show.described`.
        run: what was measured; None where nothing was.
        today: the day.
    """
    found = {
        "release_date": today.isoformat(),
        "how_to_use": f"capt-local generate -m {bundle.id}",
        "output": "Text, and for each token what the three models said of it.",
        "model_type": _kinds(facts),
        "foundation_models": _names(looks),
        "input_type": "Text in, text out.",
        "maintenance": f"To be looked at again by {bundle.review_by}.",
        "security": (
            "Size and SHA-256 of each file stand in the manifest, with digests of tokenizers and "
            "chat templates. Each file was loaded in a process of its own, every weight looked at "
            "for values that are no numbers."
        ),
        "usefulness": _figures(run, bundle.tested_with, today),
    }
    return found | bundle.card


def _kinds(facts: Mapping[str, Any]) -> str:
    """What the models are, and how they go together."""
    models = "; ".join(
        f"{role}: {model['architecture']}, {model['quantization']}, {model['vocabulary']:,} tokens"
        + (f", {model['adapter']}" if model["adapter"] else "")
        for role, model in facts["models"].items()
    )
    fits = " ".join(fit_text(expert, fit) for expert, fit in facts["fit"].items())
    return f"Language models whose probabilities are joined at each token. {models}. {fits}"


def fit_text(expert: str, fit: Mapping[str, Any]) -> str:
    """How an expert and its base go together, in a sentence."""
    same = {
        name.removeprefix("same_"): value for name, value in fit.items() if name.startswith("same_")
    }
    parts = [f"{'the same' if value else 'another'} {name}" for name, value in same.items()]
    share = f"{100 * fit['overlap']:.0f} % of the target's pieces are pieces of the {expert}"
    return f"The {expert} has {', '.join(parts)} as its {fit['base']}; {share}."


def _names(looks: Mapping[str, Look]) -> str:
    """What the files call their models."""
    return "; ".join(f"{role}: {look.title or 'no name'}" for role, look in looks.items())


def _figures(run: Measured | None, binding: str, today: datetime.date) -> str:
    if run is None:
        return "Not measured: the models were not run when the bundle was made."
    rows = "; ".join(
        f"{name}: {'not known' if bits is None else f'{bits:.3f}'}"
        for name, bits in run.bits.items()
    )
    return (
        f"Measured on {today.isoformat()} with capt-local {__version__} and llama-cpp-python "
        f"{binding}. Bits per byte of {run.sample}, fewer being better: {rows}. "
        f"To the question '{QUESTION}' {run.answer.tokens} tokens were generated. This says how "
        "well text is predicted, and nothing of clinical use."
    )
