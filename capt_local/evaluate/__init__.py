"""Evaluation of methods: `eval`, `score` and `bench` (docs/eval.md, docs/scoring.md)."""

from __future__ import annotations

from enum import StrEnum


class ChoiceBy(StrEnum):
    """How a classification is answered. Defined here, so that `--help` imports nothing else.

    The likelihood is conditional on an answer that is one of the choices; the question lists them,
    so other wordings take no probability from them.
    """

    LIKELIHOOD = "likelihood"  # the choice that is likeliest as a whole
    FREE = "free"  # an answer in free words, from which a choice is read
