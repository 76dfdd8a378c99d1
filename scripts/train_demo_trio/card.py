"""What the manifest of the demo trio says of it, in the order of CHAI's model card."""

from __future__ import annotations

import datetime
from typing import Any

from capt_local.llama.library import BINDING_VERSION
from capt_local.version import __version__

_YEAR = datetime.timedelta(days=365)

CARD = {
    "developer": "The capt-local project.",
    "contact": "The issues of the capt-local project.",
    "release_stage": "Demonstration; not for any clinical use.",
    "availability": "Anywhere, with the program; it travels inside the package.",
    "regulatory": "None, and none is sought: it is no medical device.",
    "keywords": "demonstration, proxy tuning, three small language models, GGUF",
    "intended_use": (
        "To try, test and measure capt-local without a download. No part of any clinical workflow."
    ),
    "intended_users": "Developers, testers, and whoever wants to see the method at work.",
    "how_to_use": "capt-local demo; capt-local chat",
    "population": "None. The texts are fictitious or public, and no patient is meant.",
    "out_of_scope": (
        "Care, triage, coding, billing, advice, or any decision about a person. Languages other "
        "than English."
    ),
    "risks": (
        "It makes things up: facts, doses and arithmetic are mostly wrong. It repeats itself, and "
        "can repeat frequent phrases of its training text."
    ),
    "biases": (
        "American textbooks, patient information and transcribed notes dominate; people, places "
        "and practices elsewhere are hardly represented."
    ),
    "risk_level": "Not for clinical use, so none is claimed.",
    "output": "Text, and for each token what the three models said of it. No advice.",
    "model_type": (
        "Three decoder-only transformers (llama architecture), joined at each token by "
        "Cross-Architecture Proxy Tuning; their sizes stand in MODEL_CARDS.md."
    ),
    "foundation_models": "None: all three were trained from nothing.",
    "input_source": "What the user types, or a file.",
    "input_type": "English text in, English text out.",
    "development_data": (
        "Open textbooks, public-domain novels, word problems, patient information, transcribed "
        "and fictitious notes, case reports; listed with licences in MODEL_CARDS.md."
    ),
    "bias_mitigation": "None.",
    "maintenance": "Made anew when the training script changes; looked at by the review date.",
    "security": (
        "Sizes and digests of files, tokenizers and chat templates stand in the manifest. Sources "
        "hold no identifiable patients as far as their publishers state."
    ),
    "funding": "Not stated.",
    "stakeholders": "None were consulted.",
    "usefulness": (
        "Bits per byte of each model on clinical and general prose: MODEL_CARDS.md. No clinical "
        "use was evaluated."
    ),
    "fairness": "Not evaluated.",
    "safety": "Not evaluated; see the known risks.",
    "evaluation": "MODEL_CARDS.md, and docs/results.md of the project.",
    "clinical_trial": "None.",
    "publications": "None about these models.",
    "reimbursement": "None.",
    "consent": "Does not apply: not for use with patients.",
}


def about(made: datetime.date) -> dict[str, Any]:
    """The fields of the bundle that do not come from its files.

    Args:
        made: the day on which it was made; it is to be looked at again a year later.
    """
    texts = CARD | {"release_date": made.isoformat()}
    return {
        "requires": ".".join(__version__.split(".")[:2]),
        "tested_with": BINDING_VERSION,
        "review_by": (made + _YEAR).isoformat(),
        "card": dict(texts),
    }
