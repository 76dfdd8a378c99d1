"""Tasks under methods, measured: `eval`, `score` and `bench` (docs/eval.md, docs/scoring.md)."""

from __future__ import annotations

from enum import StrEnum


class ChoiceBy(StrEnum):
    """How the answer to a classification is found. Here, since the help needs nothing else.

    The likelihood is what the model believes if it answers with one of the choices; the question
    lists them, so no other wording takes a share of it.
    """

    LIKELIHOOD = "likelihood"  # the choice that is likeliest as a whole
    FREE = "free"  # an answer in free words, from which a choice is read
