"""The report of an answer as one HTML page that stands by itself.

All text passes Jinja's autoescape behind the sanitiser. The page's policy lets nothing load and
no script run but its own, by hash; it opens from a file, without a network.
"""

from __future__ import annotations

import base64
import codecs
import datetime
import functools
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from capt_local.decoding.step import Choice, FinishReason, Step
from capt_local.errors import UsageError
from capt_local.report.answers import (
    changed_words,
    expert_weight,
    formula,
    in_word,
    in_words,
    largest_shifts,
    nats,
    said,
    short_line,
)
from capt_local.report.json import Answer, warnings
from capt_local.report.sanitise import visible, visible_line

_SHIFTS = 10
_DEEPEST = 8
_LEAST_WEIGHT = 0.005
_END = "end of the answer"


@dataclass(frozen=True, slots=True)
class Shift:
    """A row of the table of the largest shifts, as it is shown."""

    cell: int
    number: int
    instead: str
    said: str
    chance_instead: str
    chances: tuple[str, ...]
    contrast: str
    level: int


def page(answer: Answer, alone: Answer | None = None, note: str = "") -> str:
    """The page.

    Args:
        answer: what is reported on.
        alone: the target's own answer to the same prompt, to stand beside it.
        note: the text that was asked about, to stand beside the answer; empty where it is not
            known.

    Raises:
        UsageError: the provenance is nested deeper than any that we write.
    """
    style, script = (_own_file(name) for name in ("report.css", "report.js"))
    coloured = expert_weight(answer) >= _LEAST_WEIGHT
    found = cells(answer, coloured=coloured)
    words, of_words = changed_words(answer.steps)
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            policy=policy(style, script),
            answer=answer,
            cells=found,
            details=details(found),
            chart=chart(answer.steps),
            shifts=_shifts(answer, found),
            levels=range(-LEVELS, LEVELS + 1),
            limit=f"{LIMIT:g}",
            together=_figures(answer),
            alone=alone and _figures(alone),
            three=len(answer.prompt_tokens) > 1,
            note=visible(note),
            words=words,
            of_words=of_words,
            coloured=coloured,
            marked=_in_changed_words(found),
            sums=[(formula(powers), share) for powers, share in answer.weights if share >= 0.005],
            drawn=any(step.likeliest is not None for step in answer.steps),
            warnings=[visible(line) for line in (*answer.notices, *warnings(answer))],
            facts=_facts(answer),
            more=list(_flat(answer.provenance)),
        )
    )


def policy(style: str, script: str) -> str:
    """What the page may do (Content Security Policy): nothing, but for these two of its own."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _own_file(name: str) -> str:
    """A file of the package; the template puts it into the page as it is."""
    return (resources.files("capt_local.report") / "page" / name).read_text("utf-8")


@functools.cache
def _environment() -> Environment:
    # Kept: compiling the template takes longer than filling it.
    environment = Environment(
        loader=PackageLoader("capt_local.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A page of a long answer is mostly this.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _shifts(answer: Answer, found: tuple[Cell, ...]) -> list[Shift]:
    where = {step.index: cell.number for cell in found for step in cell.steps}
    return [
        _shift(step, found[where[step.index]]) for step in largest_shifts(answer.steps, _SHIFTS)
    ]


def _shift(step: Step, cell: Cell) -> Shift:
    return Shift(
        cell=cell.number,
        number=step.index + 1,
        instead=spelled(step.target_choice.piece_bytes) or _END,
        said=spelled(said(step)) or _END,
        chance_instead=chance(step.target_choice.logp),
        chances=tuple(
            chance(logp) for logp in (step.target_logp, step.expert_logp, step.base_logp, step.logp)
        ),
        contrast=nats(step.contrast).replace("-", "\N{MINUS SIGN}"),
        level=level(step.contrast) if cell.coloured else 0,
    )


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


def _figures(answer: Answer) -> dict[str, object]:
    """A whole answer: its text, and a line about it."""
    return {
        "text": visible(answer.text.decode("utf-8", "replace")),
        "line": short_line(answer),
        "changed": sum(step.changed for step in answer.steps),
        "count": len(answer.steps),
    }


def _facts(answer: Answer) -> list[tuple[str, str]]:
    """The provenance that a reader looks for first."""
    held = answer.provenance
    facts = [("Bundle", answer.model)]
    if isinstance(held.get("method"), str):
        facts.append(("Method", held["method"]))
    if answer.weights:
        facts.append(("Weights (share)", in_words(answer.weights)))
    if answer.finish:
        facts.append(("Ended by", str(answer.finish)))
    if answer.prompt_tokens:
        counts = ", ".join(f"{role} {count}" for role, count in answer.prompt_tokens.items())
        facts.append(("Prompt tokens", counts))
    if (made := _moment(answer.created)) is not None:
        facts.append(("Made", made))
    facts += [("Answer", answer.id), ("Labels", "AI report (AIRPT), human review: none")]
    return [(name, visible_line(value)) for name, value in facts if value]


def _moment(created: int | None) -> str | None:
    if created is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(created, datetime.UTC)
    except (OverflowError, ValueError, OSError):  # a file may say anything
        return None
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _flat(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Everything that is nested, as (path, value) pairs; nothing is left out."""
    if len(path) > _DEEPEST:
        raise UsageError("The provenance of this answer is nested too deeply to be one of ours.")
    if isinstance(value, Mapping) and value:
        for name, held in value.items():
            yield from _flat(held, (*path, str(name)))
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping | list) for v in value):
        for i, held in enumerate(value):
            yield from _flat(held, (*path, str(i + 1)))
    elif path:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield visible_line(" · ".join(path)), visible_line("none" if value is None else text)


LIMIT = 4.0
"""Where the scale of the contrast ends on both sides, in nats: the same on every page."""
LEVELS = 8
"""Steps of the scale on each side of 0."""
TOP = 3
"""How many candidates of each model the page tells."""
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Cell:
    """A stretch of text that belongs together, and what is known about it.

    Tokens that hold parts of one character, or of one emoji, are one cell.

    Attributes:
        number: from 0.
        lead: white space in front, which is not coloured.
        text: what is; without anything that a reader's machine would obey.
        trail: white space behind.
        steps: that made the text, in order.
        name: what the cell is for those who cannot see it, where its text says nothing.
        coloured: whether its contrast is shown; not where the expert had no weight in the answer.
    """

    number: int
    lead: str
    text: str
    trail: str
    steps: tuple[Step, ...]
    name: str = ""
    coloured: bool = True

    @property
    def changed(self) -> bool:
        """Whether any of its tokens was."""
        return any(step.changed for step in self.steps)

    @property
    def level(self) -> int:
        """Of the largest contrast, from -LEVELS to LEVELS."""
        if not self.coloured:
            return 0
        return level(max(contrasts(self.steps).values(), key=abs, default=0.0))


def contrasts(steps: Sequence[Step]) -> dict[int, float]:
    """Those that are known, by their places among the steps."""
    told = ((place, step.contrast) for place, step in enumerate(steps))
    return {place: x for place, x in told if x is not None and not math.isnan(x)}


def level(contrast: float | None) -> int:
    """A contrast in nats as a step of the scale; beyond its ends is at its ends."""
    if contrast is None or math.isnan(contrast):
        return 0
    return round(min(max(contrast / LIMIT, -1.0), 1.0) * LEVELS)


def cells(answer: Answer, *, coloured: bool = True) -> tuple[Cell, ...]:
    """The cells of an answer; their texts joined are its text, made visible."""
    groups: list[tuple[str, list[Step]]] = []
    for text, steps in _characters(answer):
        if groups and text and _goes_on(groups[-1][0], text):
            groups[-1] = (groups[-1][0] + text, groups[-1][1] + steps)
        else:
            groups.append((text, steps))
    made = (_cell(number, text, steps) for number, (text, steps) in enumerate(groups))
    return tuple(made) if coloured else tuple(replace(cell, coloured=False) for cell in made)


def _in_changed_words(found: Sequence[Cell]) -> set[int]:
    """Numbers of the cells that are parts of a word in which another cell was changed."""
    marked: set[int] = set()
    word: list[Cell] = []
    for cell in found:
        last = word[-1] if word else None
        joined = last is not None and not last.trail and not cell.lead
        if not (joined and last and in_word(last.text[-1:]) and in_word(cell.text[:1])):
            word = []
        word.append(cell)
        if any(each.changed for each in word):
            marked.update(each.number for each in word)
    return marked


def _characters(answer: Answer) -> Iterator[tuple[str, list[Step]]]:
    """Text that ends at the end of a character, with its steps."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, steps = "", list[Step]()
    for step in answer.steps:
        text += decoder.decode(step.piece_bytes)
        steps.append(step)
        if text and not decoder.getstate()[0]:
            yield text, steps
            text, steps = "", []
    # What an interruption held back belongs to no step.
    rest = answer.text[sum(len(step.piece_bytes) for step in answer.steps) :]
    text += decoder.decode(rest, True)
    if text or steps:
        yield text, steps


def _goes_on(before: str, text: str) -> bool:
    """Whether a text begins within what a reader sees as one sign."""
    first = text[0]
    if before.endswith(_JOINER) or first == _JOINER:
        return True
    if "\U0001f1e6" <= first <= "\U0001f1ff":  # a flag is two letters
        letters = len(before) - len(before.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return letters % 2 == 1
    return unicodedata.category(first).startswith("M") or "\U0001f3fb" <= first <= "\U0001f3ff"


def _cell(number: int, text: str, steps: list[Step]) -> Cell:
    shown = visible(text)
    core = shown.strip(" \t\n")
    if core:
        start = shown.index(core)
        end = start + len(core)
        return Cell(number, shown[:start], core, shown[end:], tuple(steps))
    name = "white space"
    if "\n" in shown:
        name = "line break"
    elif not shown:
        name = "the end of the answer" if _ended(steps) else "held back"
    return Cell(number, "", shown, "", tuple(steps), name)


def _ended(steps: Sequence[Step]) -> bool:
    """Whether the steps are a token that ends an answer, and not part of a stop string."""
    return len(steps) == 1 and (steps[0].finish is FinishReason.STOP or not said(steps[0]))


def details(found: Sequence[Cell]) -> dict[str, list[object]]:
    """What the page tells about each step, as a JSON value; every piece is there once.

    Returns:
        pieces: texts; steps: per step the number of its cell, the piece that was said, logp,
        target_logp, rank under the target, the target's own piece and its logp, contrast,
        expert_logp, base_logp, changed and drawn (0 or 1), and four lists of piece, logp, piece,
        logp, ...: of target, expert, base and all together. Numbers that are not finite are null.
    """
    pieces: dict[bytes, int] = {}

    def place(piece: bytes) -> int:
        return pieces.setdefault(piece, len(pieces))

    def top(choices: Sequence[Choice]) -> list[object]:
        return [x for c in choices[:TOP] for x in (place(c.piece_bytes), short(c.logp))]

    steps: list[object] = [
        [
            cell.number,
            place(said(step)),
            short(step.logp),
            short(step.target_logp),
            step.target_rank,
            place(step.target_choice.piece_bytes),
            short(step.target_choice.logp),
            short(step.contrast),
            short(step.expert_logp),
            short(step.base_logp),
            int(step.changed),
            int(step.likeliest is not None),
            *map(top, (step.target_top, step.expert_top, step.base_top, step.top)),
        ]
        for cell in found
        for step in cell.steps
    ]
    return {"pieces": [spelled(piece) for piece in pieces], "steps": steps}


def spelled(piece: bytes) -> str:
    """A token on one line: white space and bytes that are no character are spelled out."""
    return visible_line(piece.decode("utf-8", "backslashreplace"))


def short(value: float | None) -> float | None:
    """A number with as many digits as a page needs; None where there is none."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


_NARROWEST = 40  # tokens; bars of a short answer would look like walls
_HALF = 40  # height of one side of the scale
_TICK = 6  # height of the marks of changed tokens, below the scale


@dataclass(frozen=True, slots=True)
class Chart:
    """Paths, one unit wide for each token.

    Attributes:
        width: in tokens; more than there are where the answer is short.
        height: of the whole.
        zero: where contrast 0 is.
        marks: heights of the lines of the scale.
        above: bars of tokens that the expert finds likelier.
        below: bars of tokens that the base finds likelier.
        changed: marks of the changed tokens.
        beyond: tokens whose contrast is beyond the scale.
        said: the chart in a sentence, for those who cannot see it.
    """

    width: int
    height: int
    zero: int
    marks: tuple[float, ...]
    above: str
    below: str
    changed: str
    beyond: int
    said: str


def chart(steps: Sequence[Step]) -> Chart:
    """The chart of an answer. Contrasts beyond the scale end at its end."""
    known = list(contrasts(steps).items())
    changed = [i for i, step in enumerate(steps) if step.changed]
    return Chart(
        width=max(len(steps), _NARROWEST),
        height=2 * _HALF + 4 + _TICK,
        zero=_HALF,
        marks=tuple(_HALF * (1 + share / 2) for share in (-2, -1, 1, 2)),
        above=_bars((i, value) for i, value in known if value > 0),
        below=_bars((i, value) for i, value in known if value < 0),
        changed="".join(f"M{i}.1 {2 * _HALF + 4}h.8v{_TICK}h-.8z" for i in changed),
        beyond=sum(abs(value) > LIMIT for _, value in known),
        said=_sentence([value for _, value in known], len(changed)),
    )


def _bars(values: Iterable[tuple[int, float]]) -> str:
    heights = ((i, _HALF * min(abs(v), LIMIT) / LIMIT * math.copysign(1, -v)) for i, v in values)
    return "".join(f"M{i}.1 {_HALF}h.8v{height:.1f}h-.8z" for i, height in heights)


def _sentence(values: Sequence[float], changed: int) -> str:
    if not values:
        return "No contrast is known."
    up = sum(value > 0 for value in values)
    return (
        f"Contrast of {len(values)} tokens, from {min(values):+.2f} to {max(values):+.2f} nats: "
        f"{up} above zero, {len(values) - up} at or below. {changed} tokens were changed."
    )
