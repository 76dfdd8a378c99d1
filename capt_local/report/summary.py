"""How much, how fast, how much the expert changed: in one line."""

from __future__ import annotations

from capt_local.report.json import Answer
from capt_local.report.weights import in_words


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
