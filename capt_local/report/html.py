"""The report of an answer as one self-contained HTML page.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from capt_local.decoding.options import Choice, FinishReason, Step
from capt_local.errors import UsageError
from capt_local.grounding import Grounding
from capt_local.report.answers import (
    MIN_SHARE,
    chance,
    changed_words,
    expert_weight,
    formula,
    in_words,
    largest_shifts,
    marked_spans,
    nats,
    short,
    short_line,
    spelled,
    written,
)
from capt_local.report.json import REPORT_CANDIDATES, Answer, warnings
from capt_local.report.views import visible, visible_line

LIMIT = 4.0
"""Where the scale of the contrast ends on both sides, in nats: the same on every page."""
LEVELS = 8
"""Steps of the scale on each side of 0."""
_DEEPEST = 8  # levels of a provenance
_JOINER = "\u200d"


def page(answer: Answer, note: str = "", offset: int = 0) -> str:
    """The report of an answer, with the note that it is about if that is known.

    `offset` is where in the note the document begins in which facts were searched. UsageError: the
    provenance is nested deeper than any that we write.
    """
    style, script = _files("strip.css", "report.css"), _files("strip.js", "report.js")
    found = cells(answer)
    sources = answer.sources or Grounding("", [], [])
    missing = [(fact.start, fact.end) for fact in sources.facts if not fact.supported]
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            policy=policy(style, script),
            answer=answer,
            three=len(answer.prompt_tokens) > 1,
            words=changed_words(answer.steps),
            warnings=[visible(line) for line in (*answer.notices, *warnings(answer))],
            cells=found,
            coloured=expert_weight(answer) >= MIN_SHARE,
            marked=_overlapping(found, marked_spans(answer.steps)),
            unsupported=_overlapping(found, missing),
            details=details(found),
            contrasts=contrasts(answer.steps),
            changed=[place for place, step in enumerate(answer.steps) if step.changed],
            levels=range(-LEVELS, LEVELS + 1),
            limit=LIMIT,
            note=_note_parts(sources, note, offset),
            sources=sources,
            shifts=largest_shifts(answer.steps),
            cell_of={step.index: cell.number for cell in found for step in cell.steps},
            drawn=any(step.likeliest is not None for step in answer.steps),
            sums=[
                (formula(powers), share) for powers, share in answer.weights if share >= MIN_SHARE
            ],
            origin=_origin(answer),
            more=list(_flat(answer.provenance)),
        )
    )


def policy(style: str, script: str) -> str:
    """The Content Security Policy: nothing but the page's own style and script, by hash."""

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
    environment.filters |= {
        "visible": visible,
        "visible_line": visible_line,
        "chance": chance,
        "level": level,
        "line": short_line,
        "nats": nats,
        "spelled": spelled,
        "written": written,
    }
    # A page of a long answer is mostly this.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _origin(answer: Answer) -> list[tuple[str, str]]:
    """The provenance that a reader looks for first."""
    method, made = answer.provenance.get("method"), ""
    if answer.created is not None:
        try:
            moment = datetime.datetime.fromtimestamp(answer.created, datetime.UTC)
            made = f"{moment:%Y-%m-%d %H:%M} UTC"
        except (OverflowError, ValueError, OSError):  # a file may say anything
            pass
    lines = [
        ("Bundle", answer.model),
        ("Method", method if isinstance(method, str) else ""),
        ("Weights (share)", in_words(answer.weights)),
        ("Ended by", str(answer.finish or "")),
        ("Prompt tokens", ", ".join(f"{role} {n}" for role, n in answer.prompt_tokens.items())),
        ("Made", made),
        ("Answer", answer.id),
        ("Labels", "AI report (AIRPT), human review: none"),
    ]
    return [(name, visible_line(value)) for name, value in lines if value]


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


# --- the answer in cells --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenCell:
    """A token, or several that hold parts of one character or of one emoji."""

    number: int
    lead: str  # white space in front, which is not coloured
    text: str  # made visible
    trail: str
    steps: tuple[Step, ...]
    name: str = ""  # accessible name of a cell without visible text

    @property
    def changed(self) -> bool:
        """Whether any of its tokens was changed."""
        return any(step.changed for step in self.steps)

    @property
    def level(self) -> int:
        """The level of its largest contrast, from -LEVELS to LEVELS."""
        return level(max(contrasts(self.steps).values(), key=abs, default=0.0))


def contrasts(steps: Sequence[Step]) -> dict[int, float]:
    """The known contrasts in nats, by index of the step."""
    return {
        place: step.contrast
        for place, step in enumerate(steps)
        if step.contrast is not None and not math.isnan(step.contrast)
    }


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
    """Whether a text continues the grapheme at the end of the text before it."""
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


def _overlapping(found: Sequence[TokenCell], spans: Sequence[tuple[int, int]]) -> set[int]:
    """Numbers of the cells of which a part lies in one of the spans of the visible text."""
    numbers, place = set(), 0
    for cell in found:
        start = place + len(cell.lead)
        end = start + len(cell.text)
        if cell.text and any(first < end and start < last for first, last in spans):
            numbers.add(cell.number)
        place = end + len(cell.trail)
    return numbers


def _note_parts(sources: Grounding, note: str, offset: int) -> list[tuple[list[str], str, bool]]:
    """The note in parts: anchors in front, text, and whether a fact of the answer stands there."""
    anchors: dict[int, list[str]] = {}
    marks: list[tuple[int, int]] = []
    named = [
        *((f"s{i}", one.source) for i, one in enumerate(sources.statements)),
        *((f"f{i}", one.source) for i, one in enumerate(sources.facts)),
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
    """What the page's script reads of each step (report.js); every piece is there once.

    The four lists are of piece, logp, piece, logp, ...; numbers that are not finite are null.
    """
    pieces: dict[bytes, int] = {}

    def place(piece: bytes) -> int:
        return pieces.setdefault(piece, len(pieces))

    def top(choices: Sequence[Choice]) -> list[object]:
        return [
            x for c in choices[:REPORT_CANDIDATES] for x in (place(c.piece_bytes), short(c.logp))
        ]

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
