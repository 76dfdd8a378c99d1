"""An answer as the JSON object that `--json` writes.

The shape is OpenAI's, so that existing readers work; what is ours lies under `capt` and
`provenance`. Everything is ASCII and valid JSON: numbers that are not finite become null.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from capt_local.decoding.options import Exponents
from capt_local.decoding.step import Choice, DraftStats, FinishReason, Step
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.decoding.loop import Generation


JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timings:
    """How long it took, in seconds."""

    load: float = 0.0
    prompt: float = 0.0
    generate: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about a finished answer.

    Attributes:
        steps: all of them, in order.
        text: the answer's bytes.
        finish: why it ended.
        model: id of the bundle.
        raw: whether the prompt was text to go on with, not a message.
        thoughts: bytes of what the model wrote before its answer; their tokens are not in `steps`.
        thought_tokens: how many tokens they took, markers and the line ends behind included.
        structured: whether it has the form that was asked for; None where none was.
        prompt_tokens: tokens of the prompt, by role.
        context_limit: tokens that the smallest context holds.
        context: tokens in the context of each model at the end and what it holds, by role; empty
            where that is not known.
        weights: exponents (a, b, c) of T^a E^b A^-c, and their share of the mixture.
        notices: what the models, templates and decoder had to say, a sentence each.
        tally: what was drafted, accepted and left out on the way; None where it is not known.
        provenance: versions, bundle, digests, method and parameters; holds no text of the user.
        created: Unix time, or None when the caller wants the same bytes each time.
        id: of this answer.
    """

    steps: Sequence[Step]
    text: bytes
    finish: FinishReason | None
    model: str
    raw: bool = False
    thoughts: bytes = b""
    thought_tokens: int = 0
    structured: bool | None = None
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    context_limit: int = 0
    context: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    weights: Sequence[tuple[Exponents, float]] = ()
    timings: Timings = field(default_factory=Timings)
    notices: Sequence[str] = ()
    tally: DraftStats | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: int | None = None
    id: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that were made, thoughts included."""
        return len(self.steps) + self.thought_tokens

    @property
    def fullest(self) -> tuple[str, int, int]:
        """The model whose context is fullest, its tokens, and how many it holds.

        Where only prompts were counted, the answer is counted in the target's tokens.
        """
        known = self.context or {
            role: (count + self.tokens, self.context_limit)
            for role, count in self.prompt_tokens.items()
        }
        if not known:
            return "target", self.tokens, self.context_limit
        role = max(known, key=lambda role: known[role][0] / max(known[role][1], 1))
        return role, *known[role]

    @property
    def context_is_full(self) -> bool:
        """Whether the answer ended since a context was full, and not after --max-tokens."""
        parameters = self.provenance.get("parameters")
        asked = parameters.get("max_tokens") if isinstance(parameters, Mapping) else None
        if self.finish is not FinishReason.LENGTH:
            return False
        if isinstance(asked, int):
            return self.tokens < asked
        _, used, limit = self.fullest
        return 0 < limit <= used


@dataclass(frozen=True, slots=True)
class Advice:
    """What makes room for a longer answer."""

    tokens: str
    context: str
    repetition: str


FLAGS = Advice("a larger --max-tokens (-n)", "a larger --ctx-size (-c)", "--no-repetition-stop")
COMMANDS = Advice(
    "/set max-tokens N",
    "a chat started with a larger --ctx-size (-c)",
    "a chat started with --no-repetition-stop",
)


def new_id() -> str:
    """A fresh id for an answer; random, so it says nothing about the text."""
    return f"capt-{uuid.uuid4().hex}"


def answer_object(
    answer: Answer, *, top_logprobs: int = 0, alone: Answer | None = None
) -> JsonObject:
    """The object for one answer. `readback.answer_from` reads it.

    Args:
        answer: what to write.
        top_logprobs: how many candidates to list for each token.
        alone: the target's own answer to the same prompt, if that was made too.
    """
    result: JsonObject = {
        "id": answer.id or new_id(),
        "object": "text_completion" if answer.raw else "chat.completion",
    }
    if answer.created is not None:
        result["created"] = answer.created
    result |= {
        "model": answer.model,
        "choices": [_choice_object(answer, top_logprobs)],
        "usage": _usage(answer),
        "timings": _timings(answer),
        "capt": _summary(answer),
        "provenance": dict(answer.provenance),
        "warnings": [*answer.notices, *warnings(answer)],
        "ai_label": "AIRPT",
        "human_review": "none",
    }
    if alone is not None:
        result["capt"]["target_alone"] = answer_object(alone)
    return result


def warnings(answer: Answer, more: Advice = FLAGS) -> list[str]:
    """What a reader of the answer must know, in sentences.

    Args:
        answer: about which.
        more: what helps where something ended it; in a chat a command, not a flag.
    """
    lines = []
    if answer.context_is_full:
        role, used, limit = answer.fullest
        lines.append(
            f"the answer ended since the context of the {role} is full ({used} of {limit} tokens), "
            f"and may be incomplete; {more.context} holds more."
        )
    elif answer.finish is FinishReason.LENGTH:
        lines.append(
            f"the answer was ended after {answer.tokens} tokens and may be incomplete; "
            f"{more.tokens} allows more."
        )
    if answer.finish is FinishReason.REPETITION:
        lines.append(
            f"the answer repeated itself and was ended ({more.repetition} lets it run on)."
        )
    if answer.finish is FinishReason.INTERRUPTED:
        lines.append("the answer was interrupted and is incomplete.")
    if answer.finish is FinishReason.ERROR:
        lines.append("an error ended the answer, so it is incomplete.")
    if answer.structured is False:
        lines.append(
            "the answer ends before its form (schema or grammar) is complete, so it is not valid."
        )
    if answer.thought_tokens and not answer.steps:
        lines.append("the model was still in its thoughts when the answer ended.")
    if not answer.text.strip():
        lines.append("the answer is empty; that says nothing about the text that was asked about.")
    return lines


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text: ASCII only, no NaN or infinity, lone surrogates replaced."""
    return json.dumps(_clean(value), ensure_ascii=True, allow_nan=False, indent=indent)


def _choice_object(answer: Answer, top_logprobs: int) -> JsonObject:
    text = answer.text.decode("utf-8", "replace")
    message: JsonObject = {"role": "assistant", "content": text}
    if answer.thought_tokens:
        message["reasoning_content"] = answer.thoughts.decode("utf-8", "replace")
    content: JsonObject = {"text": text} if answer.raw else {"message": message}
    return {
        "index": 0,
        **content,
        "finish_reason": str(answer.finish) if answer.finish else None,
        "logprobs": {"content": [step_object(step, top_logprobs) for step in answer.steps]},
    }


def step_object(step: Step, top_logprobs: int) -> JsonObject:
    """One token of an answer, with so many candidates of each model."""
    return {
        **_token(step.token, step.piece_bytes, step.logp),
        "top_logprobs": [_choice(choice) for choice in step.top[:top_logprobs]],
        "capt": {
            # Not known where one token alone was plausible: expert and base were not asked.
            "delta": step.contrast,
            "changed": step.changed,
            # Only where a draw passed over the likeliest token; `changed` is about that one.
            "likeliest_id": step.likeliest,
            "target_rank": step.target_rank,
            "target_logprob": step.target_logp,
            # Of the event that the text goes on with this token; null without --top-logprobs.
            "expert_logprob": step.expert_logp,
            "base_logprob": step.base_logp,
            "target_choice": _choice(step.target_choice),
            "target_top": [_choice(choice) for choice in step.target_top[:top_logprobs]],
            "expert_top": [_choice(choice) for choice in step.expert_top[:top_logprobs]],
            "base_top": [_choice(choice) for choice in step.base_top[:top_logprobs]],
        },
    }


def _choice(choice: Choice) -> JsonObject:
    return _token(choice.token, choice.piece_bytes, choice.logp)


def _token(token: int, piece: bytes, logp: float) -> JsonObject:
    # `bytes` is exact; `token` is for reading, since a piece need not be UTF-8 by itself. `id` is
    # what llama.cpp's server adds; those of expert and base are of their own vocabularies.
    text = piece.decode("utf-8", "replace")
    return {"token": text, "logprob": logp, "bytes": list(piece), "id": token}


def _usage(answer: Answer) -> JsonObject:
    prompt = max(answer.prompt_tokens.values(), default=0)
    prompt = answer.prompt_tokens.get("target", prompt)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.tokens,
        "completion_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": prompt + answer.tokens,
        "prompt_tokens_by_model": dict(answer.prompt_tokens),
        "context_limit": answer.context_limit,
        **({"context_by_model": _contexts(answer)} if answer.context else {}),
    }


def _contexts(answer: Answer) -> JsonObject:
    return {
        role: {"tokens": used, "limit": limit} for role, (used, limit) in answer.context.items()
    }


def _timings(answer: Answer) -> JsonObject:
    timings = answer.timings
    return {
        "load_seconds": timings.load,
        "prompt_seconds": timings.prompt,
        "generate_seconds": timings.generate,
    }


def _summary(answer: Answer) -> JsonObject:
    changed = sum(step.changed for step in answer.steps)
    contrasts = [step.contrast for step in answer.steps if step.contrast is not None]
    form: JsonObject = {}
    if answer.structured is not None:
        form["structured"] = "complete" if answer.structured else "incomplete"
    if answer.tally is not None:
        form["speed"] = _speed(answer.tally)
    return form | {
        "changed": changed,
        "share": changed / len(answer.steps) if answer.steps else None,
        # Over the tokens at which expert and base were asked, and how many these are.
        "mean_contrast": math.fsum(contrasts) / len(contrasts) if contrasts else None,
        "mean_contrast_tokens": len(contrasts),
        "weights": [
            {"powers": list(powers), "weight": weight} for powers, weight in answer.weights
        ],
    }


def _speed(tally: DraftStats) -> JsonObject:
    return {
        "forwards_per_token": tally.forwards_per_token(),
        "gated": tally.proxies_skipped,
        "drafted": tally.drafted,
        "accepted": tally.accepted,
        "acceptance": tally.acceptance,
        "by_source": {
            name: {"rounds": count.rounds, "drafted": count.drafted, "accepted": count.accepted}
            for name, count in tally.by_source.items()
        },
    }


def _clean(value: Any) -> Any:
    """The same value without numbers and characters that JSON readers refuse."""
    kind = type(value)  # exact kinds first: asking for abstract ones takes most of the time
    if value is None or kind is int or kind is bool or (kind is str and value.isascii()):
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - see above
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # numpy's numbers too
        return float(value) if math.isfinite(value) else None
    return value


def answer_of(
    generation: Generation, steps: Sequence[Step], model: str, *, load: float = 0.0, **known: Any
) -> Answer:
    """What is known about an answer.

    Args:
        generation: of the answer.
        steps: all of it, thoughts included.
        model: id of the bundle.
        load: seconds for the models.
        known: further fields of `Answer`, and `finish` or `notices` where they are others.
    """
    own = [step for step in steps if not step.thought]
    fields: dict[str, Any] = {
        "steps": own,
        "text": generation.text_bytes,
        "finish": generation.finish,
        "model": model,
        "thoughts": generation.thoughts_bytes,
        "thought_tokens": len(steps) - len(own),
        "structured": generation.structured,
        "prompt_tokens": dict(generation.prompt_tokens),
        "context_limit": generation.context_limit,
        # Of many at once, a model may hold another text already.
        "context": {
            role: (used, limit)
            for role, (used, limit) in getattr(generation, "context", {}).items()
            if used >= generation.prompt_tokens.get(role, used + 1)
        },
        "weights": tuple(generation.weights),
        "timings": Timings(load, generation.prompt_seconds, generation.generate_seconds),
        "notices": tuple(generation.notices),
        "tally": generation.stats,
    }
    return Answer(**(fields | known))


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
    if steps and ended in (
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.REPETITION,
    ):  # the others end between steps
        steps[-1] = replace(steps[-1], finish=ended)
    answer = Answer(
        steps=steps,
        text=_whole(said, b"".join(step.piece_bytes for step in steps)),
        finish=ended,
        model=root.get("model").text(),
        raw=raw,
        **_thoughts(message, usage),
        structured=_structured(root.get("capt")),
        prompt_tokens=_by_role(usage.get("prompt_tokens_by_model")),
        context_limit=usage.get("context_limit").count(),
        context=_read_contexts(usage.maybe("context_by_model")),
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
        piece_bytes=entry.get("bytes").bytes(),
        logp=entry.get("logprob").number(),
        target_logp=more.get("target_logprob").number(),
        target_rank=more.get("target_rank").count(),
        target_choice=_read_choice(more.get("target_choice")),
        contrast=delta.number() if delta else None,
        top=_choices(entry.get("top_logprobs")),
        target_top=_choices(more.get("target_top")),
        expert_top=_choices(more.get("expert_top")),
        base_top=_choices(more.get("base_top")),
        expert_logp=expert.number() if expert else None,
        base_logp=base.number() if base else None,
        likeliest=likeliest.count() if likeliest else None,
        proxies_skipped=delta is None,
    )
    if step.changed != more.get("changed").flag():
        raise UsageError(
            f"The answer contradicts itself: {more.place}.changed is not what its tokens say."
        )
    return step


def _choices(field: _Field) -> tuple[Choice, ...]:
    return tuple(_read_choice(each) for each in field.list())


def _read_choice(field: _Field) -> Choice:
    return Choice(
        field.get("id").count(), field.get("bytes").bytes(), field.get("logprob").number()
    )


def _finish(field: _Field) -> FinishReason:
    try:
        return FinishReason(field.text())
    except ValueError:
        raise field.wrong(f"one of {', '.join(FinishReason)}") from None


def _weight(field: _Field) -> tuple[Exponents, float]:
    powers = tuple(power.number() for power in field.get("powers").list())
    share = field.get("weight").number()
    if len(powers) % 2 == 0 or not all(map(math.isfinite, powers)):
        raise field.get("powers").wrong("a number for the target and two for each pair")
    if not 0.0 <= share <= 1.0 + _ROUNDED:
        raise field.get("weight").wrong("a share from 0 to 1")
    return powers, share


def _read_contexts(field: _Field | None) -> dict[str, tuple[int, int]]:
    held = field.object() if field else {}
    each = {role: field.get(role) for role in held if field and _ROLE.fullmatch(role)}
    return {
        role: (one.get("tokens").count(), one.get("limit").count()) for role, one in each.items()
    }


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
