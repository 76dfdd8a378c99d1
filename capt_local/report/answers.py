"""An answer as views: its text with changed words marked, the largest shifts, figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from capt_local.decoding.options import Exponents, Step
from capt_local.report.json import Answer, warnings
from capt_local.report.views import (
    Beside,
    Line,
    Pane,
    Prose,
    Sanitiser,
    Span,
    Table,
    View,
    cells,
    visible_line,
)

_CELL = 26
_CONTROL = re.compile(rb"<[|/]?\w{1,40}[|]?>")
MIN_SHARE = 0.005
"""Smaller shares of a mixture are not shown."""

DRAFT = Prose.of(
    "DRAFT by language models, not reviewed by a clinician. Language models invent facts.",
    strong=True,
)
LEGEND = Prose(
    (
        Span("Marked", True),
        Span(
            ": after the same text, the target alone would have written another word. That holds "
            "for one word at a time: it does not say that the target alone would have written "
            "the rest. p: the probability of what the target would have written. Target, expert, "
            "base, all: the probability of what was written, under each model and all together. "
            "Contrast: how much likelier the expert finds it than the base, in nats (+2.3 is ten "
            "times). Large does not mean correct."
        ),
    )
)
_DRAWN = Prose.of(
    "These tokens were drawn at random (a temperature above 0): changed compares the likeliest "
    "token of all three with that of the target, not with the draw."
)


def views(answer: Answer) -> tuple[View, ...]:
    """What the expert changed in an answer: in words, as marked text, as a table of the shifts.

    The target's own answer stands beside it where the answer holds that.
    """
    notes: list[View] = [Prose.of(f"Note: {line}") for line in (*answer.notices, *warnings(answer))]
    if len(answer.prompt_tokens) < 2:
        last = Prose.of("One model answered alone: nothing to compare.")
        return (DRAFT, pane("The answer", answer), *notes, last)
    shown: View = pane("What the expert changed", answer)
    if answer.alone is not None:
        shown = both(answer.alone, answer)
    if (table := shift_table(answer.steps)).rows:
        weights = in_words(answer.weights)
        notes += [table, *([Prose.of(f"Weights: {weights}.")] if weights else []), LEGEND]
        if any(step.likeliest is not None for step in answer.steps):
            notes.append(_DRAWN)
    return (DRAFT, shown, in_plain_words(answer), *notes)


def pane(title: str, answer: Answer) -> Pane:
    """The text of an answer in a frame, what the expert changed marked."""
    return Pane(title, marked_text(answer.steps), short_line(answer))


def both(alone: Answer, together: Answer) -> Beside:
    """The target's answer and that of all models; the formula where one was fixed."""
    title = "All three together"
    if len(together.weights) == 1:
        text = formula(together.weights[0][0])
        title = text[0].upper() + text[1:]
    return Beside(pane("The target alone", alone), pane(title, together))


def in_plain_words(answer: Answer) -> Prose:
    """How much the expert changed, and where most: for readers who know no log-probabilities."""
    if expert_weight(answer) < MIN_SHARE:
        return Prose.of("The expert had no weight in this answer: it is the target's own.")
    changed, count = changed_words(answer.steps)
    ends = any(step.changed and is_end(written(step)) for step in answer.steps)
    if not changed and not ends:
        return Prose.of("The expert changed no word.")
    text = f"The clinical expert changed {changed} of {count} words"
    text += ", and where the answer ends." if ends else "."
    for step in largest_shifts(answer.steps):
        before, now = step.target_choice.piece_bytes, written(step)
        if not is_end(before) and not is_end(now):
            text += (
                f" The largest change: where the target alone would have gone on with "
                f"{quoted(before)}, the answer has {quoted(now)}."
            )
            break
    return Prose.of(text)


def character_marks(steps: Iterable[Step]) -> tuple[str, list[bool]]:
    """The sanitised text of an answer, and for each character whether it is marked.

    A character may take several tokens, and a stop string may hold bytes back: text is marked when
    any token since the last text was changed. Marks that end inside a word are extended over it.
    """
    sanitiser = Sanitiser()
    pieces, marks, changed = list[str](), list[bool](), False
    for step in steps:
        changed = changed or step.changed
        if piece := sanitiser.feed(step.piece_bytes):
            pieces.append(piece)
            marks += [changed] * len(piece)
            changed = False
    pieces.append(sanitiser.flush())
    marks += [changed] * len(pieces[-1])
    text, start = "".join(pieces), 0
    while start < len(text):
        end = start + 1
        if _in_word(text[start]):
            while end < len(text) and _in_word(text[end]):
                end += 1
            if any(marks[start:end]):
                marks[start:end] = [True] * (end - start)
        start = end
    return text, marks


def _in_word(character: str) -> bool:
    # Scripts without spaces between words (from U+0E00: Thai, Khmer, Chinese, Japanese) would be
    # marked as a whole, so there each token stands for itself; Korean and Latin letters do not.
    code = ord(character)
    spaced = code < 0x0E00 or 0x1E00 <= code < 0x2000 or 0xAC00 <= code < 0xD7A4
    return character.isalnum() and spaced


def marked_text(steps: Iterable[Step]) -> Line:
    """The answer as spans, the words that hold a changed token marked."""
    text, marks = character_marks(steps)
    cuts = [i for i in range(1, len(text)) if marks[i] != marks[i - 1]]
    ends = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return tuple(Span(text[start:end], marks[start]) for start, end in ends if end > start)


def marked_spans(steps: Iterable[Step]) -> list[tuple[int, int]]:
    """Where the marked stretches of the visible text begin and end."""
    spans, place = [], 0
    for span in marked_text(steps):
        if span.marked:
            spans.append((place, place + len(span.text)))
        place += len(span.text)
    return spans


def changed_words(steps: Iterable[Step]) -> tuple[int, int]:
    """Words of an answer that hold a changed token, and all words (runs without white space)."""
    text, marks = character_marks(steps)
    words = list(re.finditer(r"\S+", text))
    return sum(any(marks[slice(*word.span())]) for word in words), len(words)


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
    """A table of the largest shifts, in probabilities and nats; no rows when nothing changed."""
    largest = largest_shifts(steps, count)
    proxies = any(step.expert_logp is not None for step in largest)
    rows = []
    for step in largest:
        logps = [step.target_logp, step.expert_logp, step.base_logp, step.logp]
        rows.append(
            (
                str(step.index + 1),
                quoted(step.target_choice.piece_bytes),
                chance(step.target_choice.logp),
                quoted(written(step)),
                *map(chance, logps if proxies else (logps[0], logps[3])),
                nats(step.contrast),
            )
        )
    figures = ("target", *(("expert", "base") if proxies else ()), "all", "contrast")
    heading = ("token", "target alone", "p", "written", *figures)
    return Table("Largest changes", tuple(rows), heading, right=(0, 2, *range(4, len(heading))))


def nats(value: float | None) -> str:
    """A contrast for people: signed, two digits; None: expert and base were not run."""
    if value is None:
        return "not run"
    return "?" if math.isnan(value) else f"{value:+.2f}"


def written(step: Step) -> bytes:
    """The bytes of the token that was chosen, also where a stop string held them back."""
    known = {choice.token: choice.piece_bytes for choice in (*step.target_top, *step.top)}
    return known.get(step.token, step.piece_bytes)


def is_end(piece: bytes) -> bool:
    """Whether a token is a control token, such as one that ends an answer, and no text."""
    return not piece or _CONTROL.fullmatch(piece) is not None


def quoted(piece: bytes, width: int = _CELL) -> str:
    """A token in quotes, on one line: white space and undecodable bytes are spelled out."""
    if is_end(piece):
        return "(end)"
    return f'"{clipped(spelled(piece), width - 2)}"'


def spelled(piece: bytes) -> str:
    """A token on one line: white space and bytes that are no character are spelled out."""
    return visible_line(piece.decode("utf-8", "backslashreplace"))


def chance(logp: float | None) -> str:
    """A natural log-probability in percent. The page's script does the same, in the same digits."""
    rounded = short(logp)
    if rounded is None:
        return "?"
    percent = 100 * math.exp(min(rounded, 0.0))
    if percent >= 10:
        return f"{percent:.0f} %"
    if percent >= 0.01:
        return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2f} %"
    return "< 0.01 %"


def short(value: float | None) -> float | None:
    """A number rounded to three digits; None if it is missing or not finite."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


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
    """A combination as a formula: `target + 0.5 (expert - base)`, `0.5 target + 0.5 expert`.

    The exponents (a, b, c, b2, c2, ...) of a product are factors of the log-probabilities.
    """
    target, *others = powers
    terms = [(target, "target")]
    for place in range(0, len(others), 2):
        expert, base = others[place : place + 2]
        number = f" {place // 2 + 1}" if len(others) > 2 else ""
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


def in_words(weights: Sequence[tuple[Exponents, float]]) -> str:
    """All combinations of at least half a percent, the heaviest first; empty without any."""
    if len(weights) == 1:
        return _short(weights[0][0])
    shown = sorted((pair for pair in weights if pair[1] >= MIN_SHARE), key=lambda pair: -pair[1])
    return ", ".join(f"{_short(powers)} ({100 * share:.0f} %)" for powers, share in shown)


def _short(powers: Exponents) -> str:
    """CAPT by its weights, `alpha 0.5`; others by their formula."""
    experts, bases = powers[1::2], powers[2::2]
    if powers[0] == 1.0 and experts == bases and any(experts):
        return "alpha " + ", ".join(f"{expert:g}" for expert in experts)
    return formula(powers)


def expert_weight(answer: Answer) -> float:
    """The mean exponent of the experts over the mixture; 1 for methods without exponents."""
    if not answer.weights:
        return 1.0
    return math.fsum(share * sum(map(abs, powers[1::2])) for powers, share in answer.weights)


def summary_line(answer: Answer) -> str:
    """Tokens, speeds, context, changed tokens and, when mixed, the weights of alpha."""
    tokens, timings, several = answer.tokens, answer.timings, len(answer.prompt_tokens) > 1
    prompt = answer.prompt_tokens.get("target", max(answer.prompt_tokens.values(), default=0))
    parts = [
        f"{counted(tokens, 'token')}{_speed(tokens, timings.generate)}",
        f"prompt {counted(prompt, 'token')}{_speed(prompt, timings.prompt)}",
        context_line(answer),
    ]
    if answer.thought_tokens:
        parts.append(f"reasoning {counted(answer.thought_tokens, 'token')}")
    if several:
        share = f" ({100 * answer.changed / len(answer.steps):.0f} %)" if answer.steps else ""
        parts.append(f"changed by the expert {answer.changed}{share}")
    if words := in_words(answer.weights):
        parts.append(f"weights: {words}")
    if several and (draft_stats := answer.draft_stats) is not None and draft_stats.steps:
        work = []
        if draft_stats.drafted:
            work.append(f"drafts {draft_stats.accepted}/{draft_stats.drafted} accepted")
        if draft_stats.proxies_skipped:
            work.append(f"{counted(draft_stats.proxies_skipped, 'token')} without the expert")
        runs = " ".join(
            f"{role} {often:.2f}" for role, often in draft_stats.forwards_per_token().items()
        )
        parts.append(", ".join([*work, f"runs a token: {runs}"]))
    if answer.finish:
        parts.append(f"end: {answer.finish}")
    return " | ".join(parts)


def context_line(answer: Answer) -> str:
    """How full the fullest context is, by the name of its model: `context 77/1024 (expert)`."""
    role, used, limit = answer.fullest
    which = f" ({role})" if len(answer.prompt_tokens) > 1 else ""
    return f"context {used}/{limit}{which}"


def short_line(answer: Answer) -> str:
    """Tokens, speed, changed tokens and the end, for below a text."""
    parts = [f"{counted(answer.tokens, 'token')}{_speed(answer.tokens, answer.timings.generate)}"]
    if len(answer.prompt_tokens) > 1:
        parts.append(f"{answer.changed} changed")
    if answer.finish:
        parts.append(f"end: {answer.finish}")
    return ", ".join(parts)


def counted(number: int, noun: str) -> str:
    """A number of things: `1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _speed(tokens: int, seconds: float) -> str:
    return f" ({tokens / seconds:.1f}/s)" if tokens and seconds > 0 else ""
