"""Two answers to one prompt as views: the target's own and that of the three together."""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.report.json import Answer
from capt_local.report.steps import marked_text, shift_table
from capt_local.report.summary import short_line
from capt_local.report.view import Bars, Beside, Pane, Prose, Span, View

LEGEND = Prose(
    (
        Span("Marked", True),
        Span(": the target alone would have chosen another token after the same text. "),
        Span("p: the probability of what the target would have said, of what was said under the "),
        Span("target, and under all three. Contrast: how much likelier the expert finds it than "),
        Span("the base, in nats. Alpha: the weight of that contrast; several are mixed by how "),
        Span("well each explains the prompt."),
    )
)


def answers(alone: Answer, together: Answer) -> Beside:
    """Both texts; what the expert changed is marked in the second."""
    return Beside(
        Pane("The target alone", marked_text(alone.steps), short_line(alone)),
        Pane("Target + expert - base", marked_text(together.steps), short_line(together)),
    )


def figures(answer: Answer) -> View:
    """The largest shifts and the weights of alpha."""
    table, weights = shift_table(answer.steps), alpha_bars(answer.weights)
    if not table.rows:
        return Prose.of("The expert changed no token.")
    return Beside(table, weights) if weights else table


def alpha_bars(weights: Sequence[tuple[float, float]]) -> Bars | None:
    """The share of each alpha in the mixture; a fixed one is one bar, no proxies are none."""
    title = "Alpha, fixed" if len(weights) == 1 else "Alpha, by the prompt"
    rows = tuple((f"{alpha:g}", share) for alpha, share in weights)
    return Bars(title, rows) if rows else None
