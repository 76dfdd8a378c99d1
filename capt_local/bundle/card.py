"""The card of a bundle: what a reader has to know before using it, in the order of CHAI.

The headings are those of the Applied Model Card of the Coalition for Health AI. A card is a table
of texts in the manifest; what nobody wrote is shown as missing, not left out.
"""

from __future__ import annotations

from collections.abc import Mapping

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Release": {
        "developer": "Developer",
        "contact": "Contact",
        "release_stage": "Release stage",
        "release_date": "Release date",
        "availability": "Where it may be used",
        "regulatory": "Regulatory approval",
        "keywords": "Keywords",
    },
    "Uses and directions": {
        "intended_use": "Intended use and workflow",
        "intended_users": "Primary intended users",
        "how_to_use": "How to use",
        "population": "Targeted patients",
        "out_of_scope": "Cautioned out-of-scope uses",
    },
    "Warnings": {
        "risks": "Known risks and limitations",
        "biases": "Known biases or ethical considerations",
        "risk_level": "Clinical risk level",
    },
    "Trust ingredients": {
        "output": "Outcome and output",
        "model_type": "Model type",
        "foundation_models": "Foundation models",
        "input_source": "Source of input data",
        "input_type": "Type of input and output",
        "development_data": "Development data",
        "bias_mitigation": "Bias mitigation",
        "maintenance": "Ongoing maintenance",
        "security": "Security and compliance",
        "funding": "Funding and third parties",
        "stakeholders": "Stakeholders consulted",
    },
    "Key metrics": {
        "usefulness": "Usefulness, usability and efficacy",
        "fairness": "Fairness and equity",
        "safety": "Safety and reliability",
    },
    "Resources": {
        "evaluation": "Evaluation references",
        "clinical_trial": "Clinical trial",
        "publications": "Peer-reviewed publications",
        "reimbursement": "Reimbursement status",
        "consent": "Patient consent or disclosure",
    },
}
KEYS = tuple(key for section in SECTIONS.values() for key in section)
