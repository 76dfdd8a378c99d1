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
import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from capt_local.decoding.step import Choice, FinishReason, Step
from capt_local.errors import UsageError
from capt_local.report.answers import (
    LEAST_SHARE,
    changed_words,
    character_marks,
    expert_weight,
    formula,
    in_words,
    largest_shifts,
    nats,
    short_line,
    written,
)
from capt_local.report.json import REPORTED, Answer, JsonObject, warnings
from capt_local.report.sanitise import visible, visible_line

LIMIT = 4.0
"""Where the scale of the contrast ends on both sides, in nats: the same on every page."""
LEVELS = 8
"""Steps of the scale on each side of 0."""
_DEEPEST = 8  # levels of a provenance
_END = "end of the answer"
_JOINER = "\u200d"
_NARROWEST = 40  # tokens; bars of a short answer would look like walls
_HALF = 40  # height of one side of the scale
_TICK = 6  # height of the marks of changed tokens, below the scale


def page(answer: Answer, note: str = "", offset: int = 0) -> str:
    """The page.

    Args:
        answer: what is reported on; the target's own answer stands beside it where it holds that.
        note: the text that was asked about, to stand beside the answer; empty where it is not
            known.
        offset: where in the note the document begins that facts of the answer were looked for in.

    Raises:
        UsageError: the provenance is nested deeper than any that we write.
    """
    style, script = _files("strip.css", "report.css"), _files("strip.js", "report.js")
    coloured = expert_weight(answer) >= LEAST_SHARE
    found = cells(answer)
    words, of_words = changed_words(answer.steps)
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            policy=policy(style, script),
            cells=[(cell, cell.level if coloured else 0) for cell in found],
            details=details(found),
            chart=chart(answer.steps),
            shifts=_shifts(answer, found, coloured=coloured),
            levels=range(-LEVELS, LEVELS + 1),
            limit=f"{LIMIT:g}",
            together=_figures(answer),
            alone=answer.alone and _figures(answer.alone),
            three=len(answer.prompt_tokens) > 1,
            note=_note_parts(answer, note, offset),
            statements=answer.sources.statements if answer.sources else [],
            facts_found=answer.sources.facts if answer.sources else [],
            lacking=answer.sources.reason if answer.sources else "",
            visible=visible_line,
            unsupported=_unsupported(answer, found),
            words=words,
            of_words=of_words,
            coloured=coloured,
            marked=_in_changed_words(answer, found),
            sums=[
                (formula(powers), share) for powers, share in answer.weights if share >= LEAST_SHARE
            ],
            drawn=any(step.likeliest is not None for step in answer.steps),
            warnings=[visible(line) for line in (*answer.notices, *warnings(answer))],
            facts=_facts(answer),
            more=list(_flat(answer.provenance)),
        )
    )


def policy(style: str, script: str) -> str:
    """What the page may do (Content Security Policy): nothing, but for these two of its own."""

    def digest(text: str) -> str:
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _files(*names: str) -> str:
    folder = resources.files("capt_local.report") / "page"
    return "".join((folder / name).read_text("utf-8") for name in names)


@functools.cache
def _environment() -> Environment:
    # Cached: compiling the template takes longer than filling it.
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


def _figures(answer: Answer) -> JsonObject:
    """A whole answer: its text, and a line about it."""
    return {
        "text": visible(answer.text.decode("utf-8", "replace")),
        "line": short_line(answer),
        "changed": answer.changed,
        "count": len(answer.steps),
    }


def _shifts(answer: Answer, found: Sequence[TokenCell], *, coloured: bool) -> list[JsonObject]:
    """The rows of the table of the largest shifts, as they are shown."""
    where = {step.index: cell.number for cell in found for step in cell.steps}
    return [
        {
            "cell": where[step.index],
            "number": step.index + 1,
            "instead": spelled(step.target_choice.piece_bytes) or _END,
            "written": spelled(written(step)) or _END,
            "chance_instead": chance(step.target_choice.logp),
            "chances": [
                chance(logp)
                for logp in (step.target_logp, step.expert_logp, step.base_logp, step.logp)
            ],
            "contrast": nats(step.contrast).replace("-", "\N{MINUS SIGN}"),
            "level": level(step.contrast) if coloured else 0,
        }
        for step in largest_shifts(answer.steps)
    ]


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


def _facts(answer: Answer) -> list[tuple[str, str]]:
    """The provenance that a reader looks for first."""
    method, made = answer.provenance.get("method"), ""
    if answer.created is not None:
        try:
            moment = datetime.datetime.fromtimestamp(answer.created, datetime.UTC)
            made = f"{moment:%Y-%m-%d %H:%M} UTC"
        except (OverflowError, ValueError, OSError):  # a file may say anything
            pass
    facts = [
        ("Bundle", answer.model),
        ("Method", method if isinstance(method, str) else ""),
        ("Weights (share)", in_words(answer.weights)),
        ("Ended by", str(answer.finish or "")),
        ("Prompt tokens", ", ".join(f"{role} {n}" for role, n in answer.prompt_tokens.items())),
        ("Made", made),
        ("Answer", answer.id),
        ("Labels", "AI report (AIRPT), human review: none"),
    ]
    return [(name, visible_line(value)) for name, value in facts if value]


def _flat(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Everything that is nested, as (path, value) pairs; nothing is left out."""
    if len(path) > _DEEPEST:
        raise UsageError("The provenance of this answer is nested too deeply to be one of ours.")
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, (*path, str(name)))
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping | list) for v in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, (*path, str(i + 1)))
    elif path:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield visible_line(" · ".join(path)), visible_line("none" if value is None else text)


# The answer in cells.


@dataclass(frozen=True, slots=True)
class TokenCell:
    """A stretch of text that belongs together, and what is known about it.

    Tokens that hold parts of one character, or of one emoji, are one cell.

    Attributes:
        number: from 0.
        lead: white space in front, which is not coloured.
        text: what is; without anything that a reader's machine would obey.
        trail: white space behind.
        steps: that made the text, in order.
        name: what the cell is for those who cannot see it, where its text says nothing.
    """

    number: int
    lead: str
    text: str
    trail: str
    steps: tuple[Step, ...]
    name: str = ""

    @property
    def changed(self) -> bool:
        """Whether any of its tokens was."""
        return any(step.changed for step in self.steps)

    @property
    def level(self) -> int:
        """Of the largest contrast, from -LEVELS to LEVELS."""
        return level(max(contrasts(self.steps).values(), key=abs, default=0.0))


def contrasts(steps: Sequence[Step]) -> dict[int, float]:
    """Those that are known, by their places among the steps."""
    values = ((place, step.contrast) for place, step in enumerate(steps))
    return {place: x for place, x in values if x is not None and not math.isnan(x)}


def level(contrast: float | None) -> int:
    """A contrast in nats as a step of the scale; beyond its ends is at its ends."""
    if contrast is None or math.isnan(contrast):
        return 0
    return round(min(max(contrast / LIMIT, -1.0), 1.0) * LEVELS)


def cells(answer: Answer) -> tuple[TokenCell, ...]:
    """The cells of an answer; their texts joined are its text, made visible."""
    groups: list[tuple[str, list[Step]]] = []
    for text, steps in _characters(answer):
        if groups and text and _goes_on(groups[-1][0], text):
            groups[-1] = (groups[-1][0] + text, groups[-1][1] + steps)
        else:
            groups.append((text, steps))
    return tuple(_cell(number, text, steps) for number, (text, steps) in enumerate(groups))


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


def _cell(number: int, text: str, steps: list[Step]) -> TokenCell:
    shown = visible(text)
    core = shown.strip(" \t\n")
    if core:
        start = shown.index(core)
        end = start + len(core)
        return TokenCell(number, shown[:start], core, shown[end:], tuple(steps))
    name = "white space"
    if "\n" in shown:
        name = "line break"
    elif not shown:  # a token that ends an answer, or a part of a stop string
        ends = len(steps) == 1 and (steps[0].finish is FinishReason.STOP or not written(steps[0]))
        name = "the end of the answer" if ends else "held back"
    return TokenCell(number, "", shown, "", tuple(steps), name)


def _in_changed_words(answer: Answer, found: Sequence[TokenCell]) -> set[int]:
    """Numbers of the cells that are parts of a word in which a token was changed."""
    _, marks = character_marks(answer.steps)
    marked, place = set(), 0
    for cell in found:
        start = place + len(cell.lead)
        if any(marks[start : start + len(cell.text)]):
            marked.add(cell.number)
        place = start + len(cell.text) + len(cell.trail)
    return marked


def _unsupported(answer: Answer, found: Sequence[TokenCell]) -> set[int]:
    """Numbers of the cells that are parts of a fact that has no source."""
    facts = answer.sources.facts if answer.sources else []
    spans = [(fact.start, fact.end) for fact in facts if not fact.supported]
    marked, place = set(), 0
    for cell in found:
        start = place + len(cell.lead)
        if any(start < end and begin < start + len(cell.text) for begin, end in spans):
            marked.add(cell.number)
        place = start + len(cell.text) + len(cell.trail)
    return marked


def _note_parts(answer: Answer, note: str, offset: int) -> list[tuple[list[str], str, bool]]:
    """The note in parts: anchors in front, text, and whether a fact of the answer stands there."""
    anchors: dict[int, list[str]] = {}
    marks: list[tuple[int, int]] = []
    if answer.sources is not None:
        named = [
            *((f"s{i}", one.source) for i, one in enumerate(answer.sources.statements)),
            *((f"f{i}", one.source) for i, one in enumerate(answer.sources.facts)),
        ]
        for name, span in named:
            if span is not None and span[1] + offset <= len(note):
                start, end = span[0] + offset, span[1] + offset
                anchors.setdefault(start, []).append(name)
                marks += [(start, end)] if name[0] == "f" else []
    ends = {0, len(note), *anchors, *(place for mark in marks for place in mark)}
    return [
        (
            anchors.get(start, []),
            visible(note[start:end]),
            any(begin <= start and end <= last for begin, last in marks),
        )
        for start, end in itertools.pairwise(sorted(ends))
    ]


def details(found: Sequence[TokenCell]) -> dict[str, list[object]]:
    """What the page tells about each step, as a JSON value; every piece is there once.

    Returns:
        pieces: texts; steps: per step the number of its cell, the piece that was written, logp,
        target_logp, rank under the target, the target's own piece and its logp, contrast,
        expert_logp, base_logp, changed and drawn (0 or 1), and four lists of piece, logp, piece,
        logp, ...: of target, expert, base and all together. Numbers that are not finite are null.
    """
    pieces: dict[bytes, int] = {}

    def place(piece: bytes) -> int:
        return pieces.setdefault(piece, len(pieces))

    def top(choices: Sequence[Choice]) -> list[object]:
        return [x for c in choices[:REPORTED] for x in (place(c.piece_bytes), short(c.logp))]

    steps: list[object] = [
        [
            cell.number,
            place(written(step)),
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


def chart(steps: Sequence[Step]) -> JsonObject:
    """The chart of an answer as SVG paths, one unit wide for each token.

    Returns:
        width in tokens; height; zero: where contrast 0 is; marks: heights of the lines of the
        scale; above, below: bars of tokens that expert or base find likelier, cut at the ends of
        the scale; changed: marks of the changed tokens; beyond: tokens beyond the scale; said: the
        chart in a sentence, for those who cannot see it.
    """
    known = contrasts(steps)
    changed = [i for i, step in enumerate(steps) if step.changed]
    values = list(known.values())
    up = sum(value > 0 for value in values)
    sentence = "No contrast is known."
    if values:
        sentence = (
            f"Contrast of {len(values)} tokens, from {min(values):+.2f} to {max(values):+.2f} "
            f"nats: {up} above zero, {len(values) - up} at or below. {len(changed)} tokens were "
            "changed."
        )
    return {
        "width": max(len(steps), _NARROWEST),
        "height": 2 * _HALF + 4 + _TICK,
        "zero": _HALF,
        "marks": [_HALF * (1 + share / 2) for share in (-2, -1, 1, 2)],
        "above": _bars((i, value) for i, value in known.items() if value > 0),
        "below": _bars((i, value) for i, value in known.items() if value < 0),
        "changed": "".join(f"M{i}.1 {2 * _HALF + 4}h.8v{_TICK}h-.8z" for i in changed),
        "beyond": sum(abs(value) > LIMIT for value in values),
        "said": sentence,
    }


def _bars(values: Iterable[tuple[int, float]]) -> str:
    heights = ((i, _HALF * min(abs(v), LIMIT) / LIMIT * math.copysign(1, -v)) for i, v in values)
    return "".join(f"M{i}.1 {_HALF}h.8v{height:.1f}h-.8z" for i, height in heights)
