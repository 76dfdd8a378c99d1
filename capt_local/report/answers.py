"""An answer as views: its text with changed words marked, the largest shifts, weights, figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from capt_local.decoding.options import Exponents
from capt_local.decoding.step import Choice, Step
from capt_local.report.json import FLAGS, Advice, Answer, warnings
from capt_local.report.sanitise import Sanitiser, visible_line
from capt_local.report.views import Bars, Beside, Line, Pane, Prose, Span, Table, View, cells

_CELL = 26
_CONTROL = re.compile(rb"<[|/]?\w{1,40}[|]?>")
_LEAST = 0.005  # smaller shares of a mixture are not shown

DRAFT = Prose.of(
    "DRAFT by language models, not reviewed by a clinician. Language models invent facts.",
    strong=True,
)
LEGEND = Prose(
    (
        Span("Marked", True),
        Span(
            ": after the same text, the target alone would have written another word. That holds "
        ),
        Span("for one word at a time: it does not say that the target alone would have written "),
        Span(
            "the rest. p: the probability of what the target would have written. Target, expert, "
        ),
        Span("base, all: the probability of what was written, under each model and all together. "),
        Span(
            "Contrast: how much likelier the expert finds it than the base, in nats (+2.3 is ten "
        ),
        Span("times). Large does not mean correct."),
    )
)
_DRAWN = Prose.of(
    "These tokens were drawn at random (a temperature above 0): changed compares the likeliest "
    "token of all three with that of the target, not with the draw."
)


def views(answer: Answer, alone: Answer | None = None, more: Advice = FLAGS) -> tuple[View, ...]:
    """What the expert changed in an answer: in words, as marked text, as a table of the shifts.

    Args:
        answer: what is explained.
        alone: the target's own answer to the same prompt, to stand beside it.
        more: see `warnings`.
    """
    notes = [Prose.of(f"Note: {line}") for line in (*answer.notices, *warnings(answer, more))]
    if len(answer.prompt_tokens) < 2:
        pane = Pane("The answer", marked_text(answer.steps), short_line(answer))
        return (DRAFT, pane, *notes, Prose.of("One model answered alone: nothing to compare."))
    shown: View = Pane("What the expert changed", marked_text(answer.steps), short_line(answer))
    if alone is not None:
        shown = both(alone, answer)
    return (DRAFT, shown, in_plain_words(answer), *notes, *_figures(answer))


def both(alone: Answer, together: Answer) -> Beside:
    """The target's answer and that of all models; what the expert changed is marked."""
    return Beside(
        Pane("The target alone", marked_text(alone.steps), short_line(alone)),
        Pane(_combination(together), marked_text(together.steps), short_line(together)),
    )


def in_plain_words(answer: Answer) -> Prose:
    """How much the expert changed, and where most: for readers who know no log-probabilities."""
    if expert_weight(answer) < _LEAST:
        return Prose.of("The expert had no weight in this answer: it is the target's own.")
    changed, count = changed_words(answer.steps)
    ends = any(step.changed and is_end(said(step)) for step in answer.steps)
    if not changed and not ends:
        return Prose.of("The expert changed no word.")
    text = f"The clinical expert changed {changed} of {count} words"
    text += ", and where the answer ends." if ends else "."
    for step in largest_shifts(answer.steps):
        before, now = step.target_choice.piece_bytes, said(step)
        if not is_end(before) and not is_end(now):
            text += (
                f" The largest change: where the target alone would have gone on with "
                f"{quoted(before)}, the answer has {quoted(now)}."
            )
            break
    return Prose.of(text)


def _figures(answer: Answer) -> tuple[View, ...]:
    table = shift_table(answer.steps)
    if not table.rows:
        return ()
    weights = bars(answer.weights)
    drawn = (_DRAWN,) if any(step.likeliest is not None for step in answer.steps) else ()
    return (Beside(table, weights) if weights else table, LEGEND, *drawn)


def marked_text(steps: Iterable[Step]) -> Line:
    """The answer as spans, the words that hold a changed token marked.

    A character may take several tokens, and a stop string may hold bytes back: text is marked
    when any token since the last text was changed.
    """
    sanitiser = Sanitiser()
    pieces: list[tuple[str, bool]] = []
    changed = False
    for step in steps:
        changed = changed or step.changed
        text = sanitiser.feed(step.piece_bytes)
        if text:
            pieces.append((text, changed))
            changed = False
    if rest := sanitiser.flush():
        pieces.append((rest, changed))
    text = "".join(piece for piece, _ in pieces)
    marks = [mark for piece, mark in pieces for _ in piece]
    _mark_words(text, marks)
    spans: list[Span] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or marks[end] != marks[start]:
            spans.append(Span(text[start:end], marks[start]))
            start = end
    return tuple(spans)


def changed_words(steps: Iterable[Step]) -> tuple[int, int]:
    """Words of an answer that hold a changed token, and all words (runs without white space)."""
    count = changed = 0
    inside = marked = False
    for span in (*marked_text(steps), Span(" ")):
        for character in span.text:
            if character.isspace():
                count, changed = count + inside, changed + (inside and marked)
                inside = marked = False
            else:
                inside, marked = True, marked or span.marked
    return changed, count


def _mark_words(text: str, marks: list[bool]) -> None:
    """Extends marks that end inside a word over the whole word."""
    start = 0
    while start < len(text):
        end = start + 1
        if in_word(text[start]):
            while end < len(text) and in_word(text[end]):
                end += 1
            if any(marks[start:end]):
                marks[start:end] = [True] * (end - start)
        start = end


def in_word(character: str) -> bool:
    """Whether a character is part of a word that is marked as a whole."""
    # Scripts without spaces between words (from U+0E00: Thai, Khmer, Chinese, Japanese) would be
    # marked as a whole, so there each token stands for itself; Korean and Latin letters do not.
    if not character:
        return False
    code = ord(character)
    spaced = code < 0x0E00 or 0x1E00 <= code < 0x2000 or 0xAC00 <= code < 0xD7A4
    return character.isalnum() and spaced


def largest_shifts(steps: Iterable[Step], count: int = 10) -> list[Step]:
    """The changed steps in which the combination moved furthest from the target.

    Ordered by logp - target_logp of the token that was chosen (nats), largest first. The same
    change of the same token, made again and again, is there once.
    """
    changed = sorted(
        (step for step in steps if step.changed), key=lambda step: step.target_logp - step.logp
    )
    once: dict[tuple[int, int], Step] = {}
    for step in changed:
        once.setdefault((step.target_choice.token, step.token), step)
    return list(once.values())[:count]


def shift_table(steps: Sequence[Step], count: int = 10) -> Table:
    """A table of the largest shifts; without rows when nothing changed.

    Columns: the token's number, what the target alone would have written and its probability, what
    was written, its probability under target, expert, base (where known) and all together, and
    the contrast in nats.
    """
    largest = largest_shifts(steps, count)
    proxies = any(step.expert_logp is not None for step in largest)
    rows = tuple(_row(step, proxies) for step in largest)
    figures = ("target", *(("expert", "base") if proxies else ()), "all", "contrast")
    heading = ("token", "target alone", "p", "written", *figures)
    return Table("Largest changes", rows, heading, right=(0, 2, *range(4, len(heading))))


def _row(step: Step, proxies: bool) -> tuple[str, ...]:
    logps = (step.expert_logp, step.base_logp) if proxies else ()
    return (
        str(step.index + 1),
        quoted(step.target_choice.piece_bytes),
        probability(step.target_choice.logp),
        quoted(said(step)),
        probability(step.target_logp),
        *(probability(math.nan if logp is None else logp) for logp in logps),
        probability(step.logp),
        nats(step.contrast),
    )


def nats(value: float | None) -> str:
    """A contrast for people: signed, two digits; None: expert and base were not run."""
    if value is None:
        return "not run"
    return "?" if math.isnan(value) else f"{value:+.2f}"


def said(step: Step) -> bytes:
    """The bytes of the token that was chosen, also where a stop string held them back."""
    candidates: tuple[Choice, ...] = (*step.top, *step.target_top)
    for choice in candidates:
        if choice.token == step.token:
            return choice.piece_bytes
    return step.piece_bytes


def is_end(piece: bytes) -> bool:
    """Whether a token is a control token, such as one that ends an answer, and no text."""
    return not piece or _CONTROL.fullmatch(piece) is not None


def quoted(piece: bytes, width: int = _CELL) -> str:
    """A token in quotes, on one line: white space and undecodable bytes are spelled out."""
    if is_end(piece):
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


def formula(powers: Exponents) -> str:
    """What is added up: `target + 0.5 (expert - base)`, `0.5 target + 0.5 expert`.

    Args:
        powers: exponents (a, b, c, b2, c2, ...) of the product; factors of the log-probabilities.
    """
    target, *others = powers
    pairs = list(zip(others[0::2], others[1::2], strict=True))
    terms = [(target, "target")]
    for place, (expert, base) in enumerate(pairs, 1):
        number = f" {place}" if len(pairs) > 1 else ""
        if expert == base:
            terms.append((expert, f"(expert{number} - base{number})"))
        else:
            terms += [(expert, f"expert{number}"), (-base, f"base{number}")]
    text = ""
    for factor, name in terms:
        if factor:
            sign = ("- " if factor < 0 else "+ ") if text else ("-" if factor < 0 else "")
            size = "" if abs(factor) == 1 else f"{abs(factor):g} "
            text += f"{' ' if text else ''}{sign}{size}{name}"
    return text or "nothing"


def _combination(answer: Answer) -> str:
    """The title of an answer of several models; the formula where one was fixed."""
    if len(answer.weights) == 1:
        text = formula(answer.weights[0][0])
        return text[0].upper() + text[1:]
    return "All three together"


def expert_weight(answer: Answer) -> float:
    """The mean exponent of the experts over what was mixed; 1 for methods without exponents."""
    if not answer.weights:
        return 1.0
    return math.fsum(share * sum(map(abs, powers[1::2])) for powers, share in answer.weights)


def name(powers: Exponents) -> str:
    """One combination in few letters: `target`, `expert`, `alpha 0.5`, `0.25 T + 1 E - 0.25 B`."""
    target, *others = powers
    pairs = list(zip(others[0::2], others[1::2], strict=True))
    if not any(others):
        return "target"
    if target == 1.0 and all(expert == base for expert, base in pairs):
        return "alpha " + ", ".join(f"{expert:g}" for expert, _ in pairs)
    if len(pairs) == 1 and powers == (0.0, 1.0, 0.0):
        return "expert"
    parts = [f"{target:g} T"] if target else []
    for place, (expert, base) in enumerate(pairs, start=1):
        number = str(place) if len(pairs) > 1 else ""
        parts += [f"+ {expert:g} E{number}"] if expert else []
        parts += [f"{'-' if base > 0 else '+'} {abs(base):g} B{number}"] if base else []
    return " ".join(parts).removeprefix("+ ")


def in_words(weights: Sequence[tuple[Exponents, float]]) -> str:
    """All combinations of at least half a percent, the heaviest first; empty without any."""
    if len(weights) == 1:
        return name(weights[0][0])
    shown = sorted((pair for pair in weights if pair[1] >= _LEAST), key=lambda pair: -pair[1])
    return ", ".join(f"{name(powers)} ({100 * share:.0f} %)" for powers, share in shown)


def bars(weights: Sequence[tuple[Exponents, float]]) -> Bars | None:
    """The share of each combination of at least half a percent.

    Fixed weights are one bar, a method without any has none.
    """
    title = "Log-probabilities added up" if len(weights) == 1 else "Mixed, weighed by the prompt"
    rows = tuple((formula(powers), share) for powers, share in weights if share >= _LEAST)
    return Bars(title, rows) if rows else None


def summary_line(answer: Answer) -> str:
    """Tokens, speeds, context, changed tokens and, when mixed, the weights of alpha."""
    steps, timings = answer.tokens, answer.timings
    prompt = answer.prompt_tokens.get("target", max(answer.prompt_tokens.values(), default=0))
    changed = ""
    if len(answer.prompt_tokens) > 1:
        number = sum(step.changed for step in answer.steps)
        share = f" ({100 * number / len(answer.steps):.0f} %)" if answer.steps else ""
        changed = f"changed by the expert {number}{share}"
    words = in_words(answer.weights)
    parts = [
        f"{_count(steps, 'token')}{_speed(steps, timings.generate)}",
        f"prompt {_count(prompt, 'token')}{_speed(prompt, timings.prompt)}",
        context_line(answer),
        f"thoughts {_count(answer.thought_tokens, 'token')}" if answer.thought_tokens else "",
        changed,
        f"weights: {words}" if words else "",
        _drafts(answer),
        f"end: {answer.finish}" if answer.finish else "",
    ]
    return " | ".join(part for part in parts if part)


def context_line(answer: Answer) -> str:
    """How full the fullest context is, by the name of its model: `context 77/1024 (expert)`."""
    role, used, limit = answer.fullest
    which = f" ({role})" if len(answer.prompt_tokens) > 1 else ""
    return f"context {used}/{limit}{which}"


def short_line(answer: Answer) -> str:
    """Tokens, speed, changed tokens and the end, for below a text."""
    steps = answer.tokens
    parts = [f"{_count(steps, 'token')}{_speed(steps, answer.timings.generate)}"]
    if len(answer.prompt_tokens) > 1:
        parts.append(f"{sum(step.changed for step in answer.steps)} changed")
    if answer.finish:
        parts.append(f"end: {answer.finish}")
    return ", ".join(parts)


def _drafts(answer: Answer) -> str:
    """How many drafted tokens were accepted, and how often each model ran for a token."""
    tally = answer.tally
    if tally is None or len(answer.prompt_tokens) < 2 or not tally.steps:
        return ""
    parts = []
    if tally.drafted:
        parts.append(f"drafts {tally.accepted}/{tally.drafted} accepted")
    if tally.proxies_skipped:
        parts.append(f"{_count(tally.proxies_skipped, 'token')} without the expert")
    runs = " ".join(f"{role} {often:.2f}" for role, often in tally.forwards_per_token().items())
    return ", ".join([*parts, f"runs a token: {runs}"])


def _speed(tokens: int, seconds: float) -> str:
    return f" ({tokens / seconds:.1f}/s)" if tokens and seconds > 0 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
