"""The report of an answer as one HTML page that stands by itself.

All text passes Jinja's autoescape behind the sanitiser. The page's policy lets nothing load and
no script run but its own, by hash; it opens from a file, without a network.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from capt_local.decode.step import Step
from capt_local.errors import UsageError
from capt_local.report.html_cells import LEVELS, LIMIT, Cell, cells, details, level, short, spelled
from capt_local.report.html_chart import chart
from capt_local.report.json import Answer, warnings
from capt_local.report.sanitise import visible, visible_line
from capt_local.report.steps import largest_shifts, nats, said
from capt_local.report.summary import short_line
from capt_local.report.weights import in_words

_SHIFTS = 10
_DEEPEST = 8
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


def page(answer: Answer, alone: Answer | None = None) -> str:
    """The page.

    Args:
        answer: what is reported on.
        alone: the target's own answer to the same prompt, to stand beside it.

    Raises:
        UsageError: the provenance is nested deeper than any that we write.
    """
    style, script = (_own_file(name) for name in ("report.css", "report.js"))
    found = cells(answer)
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
    return [_shift(step, where[step.index]) for step in largest_shifts(answer.steps, _SHIFTS)]


def _shift(step: Step, cell: int) -> Shift:
    return Shift(
        cell=cell,
        number=step.index + 1,
        instead=spelled(step.target_choice.piece) or _END,
        said=spelled(said(step)) or _END,
        chance_instead=chance(step.target_choice.logp),
        chances=tuple(
            chance(logp) for logp in (step.target_logp, step.expert_logp, step.base_logp, step.logp)
        ),
        contrast=nats(step.contrast).replace("-", "\N{MINUS SIGN}"),
        level=level(step.contrast),
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
