"""Two answers to one prompt as views: the target's own and that of the three together."""

from __future__ import annotations

from capt_local.report.json import Answer
from capt_local.report.steps import marked_text, shift_table
from capt_local.report.summary import short_line
from capt_local.report.view import Beside, Pane, Prose, Span, View
from capt_local.report.weights import bars

LEGEND = Prose(
    (
        Span("Marked", True),
        Span(": the target alone would have chosen another token after the same text. "),
        Span("p: the probability of what the target would have said, of what was said under the "),
        Span("target, and under all three. Contrast: how much likelier the expert finds it than "),
        Span("the base, in nats. Weights: how much the log-probabilities of target, expert and "),
        Span("base count (alpha 1 is T + E - B); several are mixed by how well each explains the "),
        Span("prompt."),
    )
)


def answers(alone: Answer, together: Answer) -> Beside:
    """Both texts; what the expert changed is marked in the second."""
    return Beside(
        Pane("The target alone", marked_text(alone.steps), short_line(alone)),
        Pane("Target + expert - base", marked_text(together.steps), short_line(together)),
    )


def figures(answer: Answer) -> View:
    """The largest shifts and the weights of the models."""
    table, weights = shift_table(answer.steps), bars(answer.weights)
    if not table.rows:
        return Prose.of("The expert changed no token.")
    return Beside(table, weights) if weights else table
