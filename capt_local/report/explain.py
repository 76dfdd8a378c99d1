"""What the expert changed in an answer, as views for a terminal; `html` makes a page of it."""

from __future__ import annotations

from capt_local.report.compare import answers
from capt_local.report.json import Answer, warnings
from capt_local.report.steps import marked_text, shift_table
from capt_local.report.summary import short_line
from capt_local.report.view import Beside, Pane, Prose, Span, View
from capt_local.report.weights import bars

LEGEND = Prose(
    (
        Span("Marked", True),
        Span(": changed; after the same text, the target alone would have said another token. "),
        Span("That is told for one token at a time, given this answer up to there: it does not "),
        Span("say that the target alone would have written the rest. p: the probability of what "),
        Span("the target would have said. Target, expert, base, all: the probability of what was "),
        Span("said under each and together. Nats: the contrast, how much likelier the expert "),
        Span("finds it than the base (+2.3 is ten times). Large does not mean correct."),
    )
)
_DRAWN = Prose.of(
    "These tokens were drawn at random (a temperature above 0): changed compares the likeliest "
    "token of all three with that of the target, not with the draw."
)


def views(answer: Answer, alone: Answer | None = None) -> tuple[View, ...]:
    """The answer with its changed tokens marked, the ten largest shifts, and how to read them.

    Args:
        answer: what is explained.
        alone: the target's own answer to the same prompt, to stand beside it.
    """
    told = [Prose.of(f"Note: {line}") for line in (*answer.notices, *warnings(answer))]
    if len(answer.prompt_tokens) < 2:
        pane = Pane("The answer", marked_text(answer.steps), short_line(answer))
        return (pane, *told, Prose.of("One model answered alone, so there is nothing to compare."))
    shown: View = Pane("What the expert changed", marked_text(answer.steps), short_line(answer))
    if alone is not None:
        shown = answers(alone, answer)
    return (shown, *told, *_figures(answer))


def _figures(answer: Answer) -> tuple[View, ...]:
    table = shift_table(answer.steps, proxies=True)
    if not table.rows:
        return (Prose.of("The expert changed no token."),)
    weights = bars(answer.weights)
    drawn = (_DRAWN,) if any(step.likeliest is not None for step in answer.steps) else ()
    return (Beside(table, weights) if weights else table, LEGEND, *drawn)
