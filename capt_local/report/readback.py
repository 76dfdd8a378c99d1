"""An answer read back from what `--json` wrote. The file is untrusted: every field is checked.

Errors name the place of a field, never what it holds: that may be a patient's text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from capt_local.decode.options import Powers
from capt_local.decode.step import Choice, FinishReason, Step
from capt_local.errors import UsageError
from capt_local.report.json import Answer, Timings, warnings

_ROLE = re.compile(r"target|(expert|base)(-[1-9][0-9]?)?")  # base-2 is that of a second pair
_UNCOUNTABLE = 1 << 53
_ROUNDED = 1e-6  # shares are sums
_DEEPEST = 8  # levels of a provenance
_HOW = "Write it with capt-local generate --json --top-logprobs 3."


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer, and the target's own to the same prompt where that was kept too."""

    answer: Answer
    alone: Answer | None = None


@dataclass(frozen=True, slots=True)
class _Field:
    """A value and where it stands, so that an error can name the place."""

    value: object
    place: str

    def wrong(self, kind: str) -> UsageError:
        return UsageError(f"This is not an answer that can be read: {self.place} is not {kind}.")

    def get(self, name: str) -> _Field:
        """A member of an object.

        Raises:
            UsageError: it is not there.
        """
        held = self.object()
        place = f"{self.place}.{name}" if self.place else name
        if name not in held:
            raise UsageError(f"The answer has no {place}. {_HOW}")
        return _Field(held[name], place)

    def maybe(self, name: str) -> _Field | None:
        """The same, or None where it is missing or null."""
        return self.get(name) if self.object().get(name) is not None else None

    def object(self) -> Mapping[str, object]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object") if self.place else UsageError(f"No answer. {_HOW}")
        return self.value

    def list(self) -> list[_Field]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [_Field(item, f"{self.place}[{i}]") for i, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def count(self) -> int:
        """A whole number from 0 on; one that no machine can count to is none."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _UNCOUNTABLE:
            raise self.wrong("a whole number from 0 on")
        return value

    def number(self) -> float:
        """A number; null, which stands for one that was not finite, becomes NaN."""
        if self.value is None:
            return math.nan
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        if abs(self.value) > 1e300:  # an integer of any length may stand in JSON
            raise self.wrong("a number of that kind")
        return float(self.value)

    def bytes(self) -> bytes:
        """A list of byte values."""
        values = self.value
        if not isinstance(values, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in values
        ):
            raise self.wrong("a list of bytes")
        return bytes(values)


def answer_from(value: object) -> Stored:
    """The answer that a JSON object holds; see `json.answer_object`.

    Args:
        value: as a JSON reader returns it.

    Raises:
        UsageError: it is not such an object, a field is missing or broken, or fields contradict
            each other.
    """
    root = _Field(value, "")
    answer = _answer(root)
    alone = root.get("capt").maybe("target_alone")
    return Stored(answer, _answer(alone) if alone else None)


def missing(answer: Answer) -> list[str]:
    """What the report would show but the answer does not hold, in sentences."""
    if not answer.steps or any(step.target_top for step in answer.steps):
        return []
    return [
        "the answer does not hold what each model found likeliest; with generate --top-logprobs 3 "
        "it does."
    ]


def _answer(root: _Field) -> Answer:
    choices = root.get("choices").list()
    if len(choices) != 1:
        raise UsageError("This is not an answer that can be read: it needs exactly one choice.")
    choice, usage, timings = choices[0], root.get("usage"), root.get("timings")
    raw = root.get("object").text() == "text_completion"
    message = choice if raw else choice.get("message")
    said = message.get("text" if raw else "content").text()
    steps = [
        _step(index, entry)
        for index, entry in enumerate(choice.get("logprobs").get("content").list())
    ]
    finish = choice.maybe("finish_reason")
    created = root.maybe("created")
    ended = _finish(finish) if finish else None
    if steps and ended in (FinishReason.STOP, FinishReason.LENGTH):  # the others end between steps
        steps[-1] = replace(steps[-1], finish=ended)
    answer = Answer(
        steps=steps,
        text=_whole(said, b"".join(step.piece for step in steps)),
        finish=ended,
        model=root.get("model").text(),
        raw=raw,
        **_thoughts(message, usage),
        structured=_structured(root.get("capt")),
        prompt_tokens=_by_role(usage.get("prompt_tokens_by_model")),
        context_limit=usage.get("context_limit").count(),
        weights=tuple(_weight(each) for each in root.get("capt").get("weights").list()),
        timings=Timings(
            *(timings.get(f"{name}_seconds").number() for name in ("load", "prompt", "generate"))
        ),
        # One line each: a file could else write lines that look like ours.
        notices=tuple(" ".join(line.text().split()) for line in root.get("warnings").list()),
        provenance=_provenance(root.get("provenance")),
        created=created.count() if created else None,
        id=root.get("id").text(),
    )
    return _without_own_warnings(answer)


def _provenance(field: _Field) -> dict[str, object]:
    if _deeper(field.value, _DEEPEST):
        raise field.wrong("nested as ours is")
    return dict(field.object())


def _deeper(value: object, levels: int) -> bool:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(each, levels - 1) for each in held)


def _thoughts(message: _Field, usage: _Field) -> dict[str, Any]:
    """What the answer holds of the model's thoughts, by the names of its fields."""
    text = message.maybe("reasoning_content")
    details = usage.maybe("completion_tokens_details")
    return {
        "thoughts": text.text().encode("utf-8", "replace") if text else b"",
        "thought_tokens": details.get("reasoning_tokens").count() if details else 0,
    }


def _structured(summary: _Field) -> bool | None:
    """Whether the answer has the form that was asked for; None where none was."""
    found = summary.maybe("structured")
    if found is None:
        return None
    if found.text() not in ("complete", "incomplete"):
        raise found.wrong("complete or incomplete")
    return found.text() == "complete"


def _without_own_warnings(answer: Answer) -> Answer:
    """`warnings` finds these again from the answer itself."""
    own = set(warnings(answer))
    return replace(answer, notices=tuple(n for n in answer.notices if n not in own))


def _step(index: int, entry: _Field) -> Step:
    more = entry.get("capt")
    names = ("likeliest_id", "expert_logprob", "base_logprob", "delta")
    likeliest, expert, base, delta = (more.maybe(name) for name in names)
    step = Step(
        index=index,
        token=entry.get("id").count(),
        piece=entry.get("bytes").bytes(),
        logp=entry.get("logprob").number(),
        target_logp=more.get("target_logprob").number(),
        target_rank=more.get("target_rank").count(),
        target_choice=_choice(more.get("target_choice")),
        contrast=delta.number() if delta else None,
        top=_choices(entry.get("top_logprobs")),
        target_top=_choices(more.get("target_top")),
        expert_top=_choices(more.get("expert_top")),
        base_top=_choices(more.get("base_top")),
        expert_logp=expert.number() if expert else None,
        base_logp=base.number() if base else None,
        likeliest=likeliest.count() if likeliest else None,
        gated=delta is None,
    )
    if step.changed != more.get("changed").flag():
        raise UsageError(
            f"The answer contradicts itself: {more.place}.changed is not what its tokens say."
        )
    return step


def _choices(field: _Field) -> tuple[Choice, ...]:
    return tuple(_choice(each) for each in field.list())


def _choice(field: _Field) -> Choice:
    return Choice(
        field.get("id").count(), field.get("bytes").bytes(), field.get("logprob").number()
    )


def _finish(field: _Field) -> FinishReason:
    try:
        return FinishReason(field.text())
    except ValueError:
        raise field.wrong(f"one of {', '.join(FinishReason)}") from None


def _weight(field: _Field) -> tuple[Powers, float]:
    powers = tuple(power.number() for power in field.get("powers").list())
    share = field.get("weight").number()
    if len(powers) % 2 == 0 or not all(map(math.isfinite, powers)):
        raise field.get("powers").wrong("a number for the target and two for each pair")
    if not 0.0 <= share <= 1.0 + _ROUNDED:
        raise field.get("weight").wrong("a share from 0 to 1")
    return powers, share


def _by_role(field: _Field) -> dict[str, int]:
    # Names of others are not repeated in an error, so they are not looked at.
    held = field.object()
    return {role: field.get(role).count() for role in held if _ROLE.fullmatch(role)}


def _whole(said: str, joined: bytes) -> bytes:
    """The bytes of the answer: those of its tokens, and what was held back at an interruption.

    Raises:
        UsageError: the text and the tokens are not the same.
    """
    known = joined.decode("utf-8", "replace")
    if said == known:
        return joined
    # A character that an interruption cut is whole in the text but not in the tokens.
    known = known.rstrip("\ufffd")
    if not said.startswith(known):
        raise UsageError("The answer contradicts itself: its text is not that of its tokens.")
    return said.encode("utf-8", "replace")
