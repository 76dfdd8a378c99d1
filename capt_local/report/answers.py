"""What the expert changed, as views: marked text, the largest shifts, the weights of alpha."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from capt_local.decoding.options import Powers
from capt_local.decoding.step import Choice, Step
from capt_local.report.json import Answer, warnings
from capt_local.report.sanitise import Sanitiser, visible_line
from capt_local.report.views import Bars, Beside, Line, Pane, Prose, Span, Table, View, cells

_CELL = 26


def marked_text(steps: Iterable[Step]) -> Line:
    """The answer as spans, the tokens that the expert changed marked.

    A character may take several tokens, and a stop string may hold bytes back: text is marked
    when any token since the last text was changed.
    """
    sanitiser = Sanitiser()
    spans: list[Span] = []
    changed = False
    for step in steps:
        changed = changed or step.changed
        text = sanitiser.feed(step.piece_bytes)
        if text:
            spans.append(Span(text, changed))
            changed = False
    rest = sanitiser.flush()
    if rest:
        spans.append(Span(rest, changed))
    return tuple(spans)


def largest_shifts(steps: Iterable[Step], count: int = 10) -> list[Step]:
    """The changed steps in which the combination moved furthest from the target.

    Ordered by logp - target_logp of the token that was said (nats), largest first. The same
    change of the same token, made again and again, is there once.
    """
    changed = sorted(
        (step for step in steps if step.changed), key=lambda step: step.target_logp - step.logp
    )
    once: dict[tuple[int, int], Step] = {}
    for step in changed:
        once.setdefault((step.target_choice.token, step.token), step)
    return list(once.values())[:count]


def shift_table(steps: Sequence[Step], count: int = 10, *, proxies: bool = False) -> Table:
    """A table of the largest shifts; without rows when nothing changed.

    Columns: the step, what the target alone would have said and its probability for it, what was
    said, its probability under the target and under the combination, and the contrast in nats.
    With `proxies`, also its probability under expert and base, where that is known.
    """
    largest = largest_shifts(steps, count)
    proxies = proxies and any(step.expert_logp is not None for step in largest)
    rows = tuple(_row(step, proxies) for step in largest)
    # Short names where there are many, so that the words beside them keep their room.
    many = ("target", "expert", "base", "all", "nats")
    figures = many if proxies else ("p target", "p all", "contrast")
    heading = ("step", "target alone", "p", "was said", *figures)
    return Table("Largest shifts", rows, heading, right=(0, 2, *range(4, len(heading))))


def _row(step: Step, proxies: bool) -> tuple[str, ...]:
    both = (step.expert_logp, step.base_logp) if proxies else ()
    return (
        str(step.index + 1),
        quoted(step.target_choice.piece_bytes),
        probability(step.target_choice.logp),
        quoted(said(step)),
        probability(step.target_logp),
        *(probability(math.nan if logp is None else logp) for logp in both),
        probability(step.logp),
        nats(step.contrast),
    )


def nats(value: float | None) -> str:
    """A contrast as a person reads it: signed, two digits; None: nobody was asked for it."""
    if value is None:
        return "not asked"
    return "?" if math.isnan(value) else f"{value:+.2f}"


def said(step: Step) -> bytes:
    """The bytes of the token that was chosen, also where a stop string held them back."""
    candidates: tuple[Choice, ...] = (*step.top, *step.target_top)
    for choice in candidates:
        if choice.token == step.token:
            return choice.piece_bytes
    return step.piece_bytes


def quoted(piece: bytes, width: int = _CELL) -> str:
    """A token in quotes, on one line: white space and undecodable bytes are spelled out."""
    if not piece:
        return "(end)"
    text = visible_line(piece.decode("utf-8", "backslashreplace"))
    return f'"{clipped(text, width - 2)}"'


def probability(logp: float) -> str:
    """A natural log-probability as a probability that a person can read."""
    if math.isnan(logp):
        return "?"
    value = math.exp(min(logp, 0.0))
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def clipped(text: str, width: int) -> str:
    """A text for a table cell; what does not fit is replaced by an ellipsis."""
    used = kept = 0
    for place, character in enumerate(text, 1):  # a text may be a long note: one pass
        used += cells(character)
        if used > width:
            return text[:kept] + "…"
        if used < width:
            kept = place
    return text


# Smaller shares of a mixture are not told.
_LEAST = 0.005


def name(powers: Powers) -> str:
    """One combination: `target`, `expert`, `alpha 0.5`, or `0.25 T + 1 E - 0.25 B`.

    The last one is the score: log-probabilities of target, expert and base times these numbers.
    """
    target, *others = powers
    pairs = list(zip(others[0::2], others[1::2], strict=True))
    if not any(others):
        return "target"
    if target == 1.0 and all(expert == base for expert, base in pairs):
        alphas = [expert for expert, _ in pairs]
        return "alpha " + ", ".join(f"{alpha:g}" for alpha in alphas)
    if len(pairs) == 1 and powers == (0.0, 1.0, 0.0):
        return "expert"
    parts = [f"{target:g} T"] if target else []
    for place, (expert, base) in enumerate(pairs, start=1):
        number = str(place) if len(pairs) > 1 else ""
        parts += [f"+ {expert:g} E{number}"] if expert else []
        parts += [f"{'-' if base > 0 else '+'} {abs(base):g} B{number}"] if base else []
    return " ".join(parts).removeprefix("+ ")


def in_words(weights: Sequence[tuple[Powers, float]]) -> str:
    """All combinations of at least half a percent, the heaviest first; empty without any."""
    if len(weights) == 1:
        return name(weights[0][0])
    shown = sorted((pair for pair in weights if pair[1] >= _LEAST), key=lambda pair: -pair[1])
    return ", ".join(f"{name(powers)} ({100 * share:.0f} %)" for powers, share in shown)


def bars(weights: Sequence[tuple[Powers, float]]) -> Bars | None:
    """The share of each combination of at least half a percent.

    Fixed weights are one bar, a method without any has none.
    """
    title = "Weights, fixed" if len(weights) == 1 else "Weights, by the prompt"
    rows = tuple((name(powers), share) for powers, share in weights if share >= _LEAST)
    return Bars(title, rows) if rows else None


def summary_line(answer: Answer) -> str:
    """Tokens, speeds, context, changed tokens and, when mixed, the weights of alpha."""
    steps, timings = answer.tokens, answer.timings
    prompt = answer.prompt_tokens.get("target", max(answer.prompt_tokens.values(), default=0))
    # The largest prompt counts: the context that is full first ends the answer.
    used = max(answer.prompt_tokens.values(), default=0) + steps
    parts = [
        f"{_count(steps, 'token')}{_speed(steps, timings.generate)}",
        f"prompt {_count(prompt, 'token')}{_speed(prompt, timings.prompt)}",
        f"context {used}/{answer.context_limit}",
        f"thoughts {_count(answer.thought_tokens, 'token')}" if answer.thought_tokens else "",
        _changed(answer),
        _weights(answer),
        _drafts(answer),
        f"end: {answer.finish}" if answer.finish else "",
    ]
    return " | ".join(part for part in parts if part)


def short_line(answer: Answer) -> str:
    """Tokens, speed, changed tokens and the end, for below a text."""
    steps = answer.tokens
    parts = [f"{_count(steps, 'token')}{_speed(steps, answer.timings.generate)}"]
    if len(answer.prompt_tokens) > 1:
        parts.append(f"{sum(step.changed for step in answer.steps)} changed")
    if answer.finish:
        parts.append(f"end: {answer.finish}")
    return ", ".join(parts)


def _changed(answer: Answer) -> str:
    if len(answer.prompt_tokens) < 2:
        return ""
    changed = sum(step.changed for step in answer.steps)
    share = f" ({100 * changed / len(answer.steps):.0f} %)" if answer.steps else ""
    return f"changed by the expert {changed}{share}"


def _drafts(answer: Answer) -> str:
    """How many drafted tokens were right, and how often each model ran for a token."""
    tally = answer.tally
    if tally is None or len(answer.prompt_tokens) < 2 or not tally.steps:
        return ""
    parts = []
    if tally.drafted:
        parts.append(f"drafts {tally.accepted}/{tally.drafted} right")
    if tally.gated:
        parts.append(f"{_count(tally.gated, 'token')} without the expert")
    runs = " ".join(f"{role} {often:.2f}" for role, often in tally.forwards_per_token().items())
    return ", ".join([*parts, f"runs a token: {runs}"])


def _weights(answer: Answer) -> str:
    return f"weights: {words}" if (words := in_words(answer.weights)) else ""


def _speed(tokens: int, seconds: float) -> str:
    return f" ({tokens / seconds:.1f}/s)" if tokens and seconds > 0 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


LEGEND_BESIDE = Prose(
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
