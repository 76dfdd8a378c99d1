"""Grounding: where a source supports the facts of an answer.

`ground` looks up each value of a structured answer, or the numbers, dates, drug names, sides and
negations of each statement of free text. It compares words and does not understand them: a fact
that is found may still be about something else in the source.
"""

from capt_local.grounding.facts import Grounding, ground, missing_from
from capt_local.grounding.source import Fact, Match, Source, Statement

__all__ = ["Fact", "Grounding", "Match", "Source", "Statement", "ground", "missing_from"]
