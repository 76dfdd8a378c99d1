"""Where in a source the facts of an answer stand.

`ground` looks for each value of a structured answer, or for the numbers, dates, drug names, sides
and negations of each statement of free text. It compares words; it does not understand them: a
fact that is found may still be said of something else.
"""

from capt_local.grounding.facts import Grounding, ground, missing_from
from capt_local.grounding.source import Fact, Match, Source, Statement

__all__ = ["Fact", "Grounding", "Match", "Source", "Statement", "ground", "missing_from"]
