"""The record of an answer, and the JSON object that `--json` writes of it.

The shape is OpenAI's, so that existing readers work; our own fields are under `capt` and
`provenance`. Everything is ASCII and valid JSON: numbers that are not finite become null. The same
structures write and read it.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from capt_local.decoding.options import Choice, DraftStats, Exponents, FinishReason, Step
from capt_local.errors import UsageError
from capt_local.grounding import Grounding, Source, ground
from capt_local.strict_json import ParseError, convert

if TYPE_CHECKING:
    from capt_local.decoding.loop import Generation
    from capt_local.documents import Document

JsonObject = dict[str, Any]
REPORT_CANDIDATES = 3
"""Candidates of each model that reports and transcripts hold for each token."""
_ROLE = re.compile(r"target|(expert|base)(-[1-9][0-9]?)?")  # base-2 is that of a second pair
_HOW = "Write it with capt-local generate --json --top-logprobs 3."
_NO_LOGPROBS = (
    "The answer holds no log-probabilities, so nothing says what the expert changed. batch writes "
    "them with --logprobs, and with --top-logprobs 3 what each model found likeliest."
)

_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Byte = Annotated[int, Meta(ge=0, le=255)]
_Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
_Number = _Finite | None  # null stands for one that was not finite


class Timings(msgspec.Struct, frozen=True, rename=lambda name: f"{name}_seconds"):
    """How long it took, in seconds."""

    load: _Finite = 0.0
    prompt: _Finite = 0.0
    generate: _Finite = 0.0


class _TokenJson(msgspec.Struct):
    token: str  # for reading, since a piece need not be UTF-8 by itself
    logprob: _Number
    bytes: list[_Byte]
    id: _Count  # as llama.cpp's server adds it; expert and base have vocabularies of their own


class _StepDetailsJson(msgspec.Struct, kw_only=True):
    delta: _Number  # null where one token alone was plausible: expert and base were not run
    changed: bool  # about the likeliest token, which a draw may pass over
    likeliest_id: _Count | None = None
    target_rank: _Count
    target_logprob: _Number
    # Of the event that the text goes on with this token; null without --top-logprobs.
    expert_logprob: _Number = None
    base_logprob: _Number = None
    target_choice: _TokenJson
    target_top: list[_TokenJson]
    expert_top: list[_TokenJson]
    base_top: list[_TokenJson]


class _StepJson(_TokenJson):
    top_logprobs: list[_TokenJson]
    capt: _StepDetailsJson


class _StepsJson(msgspec.Struct):
    content: list[_StepJson]


class _MessageJson(msgspec.Struct):
    role: str
    content: str
    reasoning_content: str | UnsetType | None = UNSET


class _ChoiceJson(msgspec.Struct, kw_only=True):
    index: _Count
    message: _MessageJson | UnsetType = UNSET
    text: str | UnsetType = UNSET  # where the prompt was continued
    finish_reason: FinishReason | None
    logprobs: _StepsJson | None  # batch writes none unless it is asked to


class _UsageDetailsJson(msgspec.Struct):
    reasoning_tokens: _Count


class _ContextJson(msgspec.Struct):
    tokens: _Count
    limit: _Count


class _UsageJson(msgspec.Struct, kw_only=True):
    prompt_tokens: _Count
    completion_tokens: _Count
    completion_tokens_details: _UsageDetailsJson | None = None
    total_tokens: _Count
    prompt_tokens_by_model: dict[str, _Count]
    context_limit: _Count
    context_by_model: dict[str, _ContextJson] | UnsetType | None = UNSET


class _WeightJson(msgspec.Struct):
    powers: list[_Finite]  # exponents of target, expert and base
    weight: Annotated[float, Meta(ge=0.0, le=1.000001)]  # their share, which is a sum


class _SummaryJson(msgspec.Struct, kw_only=True):
    structured: Literal["complete", "incomplete"] | UnsetType | None = UNSET
    speed: JsonObject | UnsetType | None = UNSET
    changed: _Count
    share: _Number = None
    mean_contrast: _Number = None
    mean_contrast_tokens: _Count = 0
    weights: list[_WeightJson]
    target_alone: _AnswerJson | UnsetType | None = UNSET
    best_of: JsonObject | UnsetType | None = UNSET
    sources: Grounding | UnsetType | None = UNSET


class _AnswerJson(msgspec.Struct, kw_only=True):
    id: str
    object: str
    created: _Count | UnsetType | None = UNSET
    model: str
    choices: Annotated[list[_ChoiceJson], Meta(min_length=1, max_length=1)]
    usage: _UsageJson
    timings: Timings
    capt: _SummaryJson
    provenance: dict[str, Any]
    warnings: list[str]
    ai_label: str = "AIRPT"
    human_review: str = "none"


@dataclass(frozen=True, slots=True)
class Answer:
    """The record of a finished answer; the steps of its reasoning are not among `steps`."""

    steps: Sequence[Step]
    text: bytes
    finish: FinishReason | None
    model: str  # id of the bundle
    raw: bool = False  # whether the prompt was text to continue, not a message
    thoughts: bytes = b""  # the model's reasoning
    thought_tokens: int = 0  # markers and the line ends behind included
    structured: bool | None = None  # whether it has the form that was asked for
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)  # by role
    context_limit: int = 0  # tokens that the smallest context holds
    # Tokens in the context of each model at the end and what it holds, by role, if that is known.
    context: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    weights: Sequence[tuple[Exponents, float]] = ()  # and their share of the mixture
    timings: Timings = field(default_factory=Timings)
    notices: Sequence[str] = ()  # of models, templates and decoder, a sentence each
    draft_stats: DraftStats | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)  # no text of the user
    created: int | None = None  # Unix time
    id: str = ""
    best_of: Mapping[str, Any] | None = None  # see `rerank`
    alone: Answer | None = None  # the target's own answer to the same prompt
    sources: Grounding | None = None  # which facts the prompt or the document has

    @property
    def tokens(self) -> int:
        """Tokens that were made, reasoning included."""
        return len(self.steps) + self.thought_tokens

    @property
    def changed(self) -> int:
        """Tokens that the expert changed."""
        return sum(step.changed for step in self.steps)

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
        """Whether the answer ended because a context was full, and not after --max-tokens."""
        if self.finish is not FinishReason.LENGTH:
            return False
        parameters = self.provenance.get("parameters")
        asked = parameters.get("max_tokens") if isinstance(parameters, Mapping) else None
        if isinstance(asked, int):
            return self.tokens < asked
        _, used, limit = self.fullest
        return 0 < limit <= used


def with_sources(
    answer: Answer, document: Document, schema: JsonObject | None, of: str, *, require: bool = False
) -> Answer:
    """Adds the sources of the answer in a document; `schema` and `of` as for `grounding.ground`.

    With `require`, an answer in which a fact has no source becomes an abstention.
    """
    if answer.finish in (None, FinishReason.INTERRUPTED, FinishReason.ERROR):
        return answer
    found = ground(answer.text.decode("utf-8", "replace"), Source(document), schema=schema, of=of)
    if require and found.unsupported:
        return replace(
            answer, steps=(), text=b"", finish=FinishReason.ABSTAINED, sources=found, alone=None
        )
    return replace(answer, sources=found)


def sources_line(sources: Grounding, most: int = 8) -> str:
    """Which parts of an answer have no source."""
    texts = dict.fromkeys(" ".join(one.text.split())[:60] for one in sources.unsupported)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{sources.reason}: {'; '.join(list(texts)[:most])}{more}."


def answer_of(
    generation: Generation, steps: Sequence[Step], model: str, *, load: float = 0.0, **known: Any
) -> Answer:
    """The record of an answer.

    `steps` are all of it, reasoning included; `load` is the loading time in seconds; `known` are
    fields of `Answer` that are added or override those of the generation.
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
        "draft_stats": generation.stats,
    }
    return Answer(**(fields | known))


def warnings(answer: Answer) -> list[str]:
    """Warnings about an answer, as sentences; settings are named without dashes."""
    lines = []
    if answer.context_is_full:
        role, used, limit = answer.fullest
        lines.append(
            f"the answer ended since the context of the {role} is full ({used} of {limit} tokens), "
            f"and may be incomplete; a larger ctx-size holds more."
        )
    elif answer.finish is FinishReason.LENGTH:
        lines.append(
            f"the answer was ended after {answer.tokens} tokens and may be incomplete; a larger "
            "max-tokens allows more."
        )
    if answer.sources is not None and answer.sources.unsupported:
        refused = "nothing is answered (--require-sources): "
        abstained = answer.finish is FinishReason.ABSTAINED
        lines.append((refused if abstained else "") + sources_line(answer.sources))
    if answer.finish is FinishReason.REPETITION:
        lines.append(
            "the answer repeated itself and was ended (no-repetition-stop lets it run on)."
        )
    if answer.finish is FinishReason.INTERRUPTED:
        lines.append("the answer was interrupted and is incomplete.")
    if answer.finish is FinishReason.ERROR:
        lines.append("an error ended the answer, so it is incomplete.")
    if answer.structured is False:
        lines.append(
            "the answer is not complete, or no instance of its schema, so it is not valid."
        )
    if answer.thought_tokens and not answer.steps:
        lines.append("the model was still reasoning when the answer ended.")
    if not answer.text.strip() and answer.finish is not FinishReason.ABSTAINED:
        lines.append("the answer is empty; that says nothing about the text that was asked about.")
    return lines


def new_id() -> str:
    """A fresh id for an answer; random, so it says nothing about the text."""
    return f"capt-{uuid.uuid4().hex}"


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text: ASCII only, no NaN or infinity, lone surrogates replaced."""
    return json.dumps(_clean(value), ensure_ascii=True, allow_nan=False, indent=indent)


def _clean(value: Any) -> Any:
    """The same value without numbers and characters that JSON readers refuse."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, Mapping):
        return _clean(dict(value))
    return _clean(value.item()) if hasattr(value, "item") else value  # numpy's numbers


# --- writing --------------------------------------------------------------------------------------


def answer_object(answer: Answer, *, top_logprobs: int = 0) -> JsonObject:
    """The object for one answer, with `top_logprobs` candidates for each token."""
    found: JsonObject = msgspec.to_builtins(_object(answer, top_logprobs))
    return found


def step_object(step: Step, top_logprobs: int) -> JsonObject:
    """One token of an answer, with so many candidates of each model."""
    found: JsonObject = msgspec.to_builtins(_step_object(step, top_logprobs))
    return found


def _object(answer: Answer, top: int) -> _AnswerJson:
    text = answer.text.decode("utf-8", "replace")
    logprobs = _StepsJson([_step_object(step, top) for step in answer.steps])
    choice = _ChoiceJson(index=0, finish_reason=answer.finish, logprobs=logprobs)
    if answer.raw:
        choice.text = text
    else:
        choice.message = _MessageJson("assistant", text)
        if answer.thought_tokens:
            choice.message.reasoning_content = answer.thoughts.decode("utf-8", "replace")
    prompt = max(answer.prompt_tokens.values(), default=0)
    prompt = answer.prompt_tokens.get("target", prompt)
    contrasts = [step.contrast for step in answer.steps if step.contrast is not None]
    summary = _SummaryJson(
        changed=answer.changed,
        share=answer.changed / len(answer.steps) if answer.steps else None,
        mean_contrast=math.fsum(contrasts) / len(contrasts) if contrasts else None,
        mean_contrast_tokens=len(contrasts),
        weights=[_WeightJson(list(powers), share) for powers, share in answer.weights],
    )
    if answer.structured is not None:
        summary.structured = "complete" if answer.structured else "incomplete"
    if answer.draft_stats is not None:
        summary.speed = _speed(answer.draft_stats)
    if answer.best_of is not None:
        summary.best_of = dict(answer.best_of)
    if answer.sources is not None:
        summary.sources = answer.sources
    if answer.alone is not None:
        summary.target_alone = _object(answer.alone, 0)
    return _AnswerJson(
        id=answer.id or new_id(),
        object="text_completion" if answer.raw else "chat.completion",
        created=UNSET if answer.created is None else answer.created,
        model=answer.model,
        choices=[choice],
        usage=_UsageJson(
            prompt_tokens=prompt,
            completion_tokens=answer.tokens,
            completion_tokens_details=_UsageDetailsJson(answer.thought_tokens),
            total_tokens=prompt + answer.tokens,
            prompt_tokens_by_model=dict(answer.prompt_tokens),
            context_limit=answer.context_limit,
            context_by_model={
                role: _ContextJson(used, limit) for role, (used, limit) in answer.context.items()
            }
            or UNSET,
        ),
        timings=answer.timings,
        capt=summary,
        provenance=dict(answer.provenance),
        warnings=[*answer.notices, *warnings(answer)],
    )


def _step_object(step: Step, top: int) -> _StepJson:
    def listed(choices: Sequence[Choice]) -> list[_TokenJson]:
        return [_token(one) for one in choices[:top]]

    own = _token(Choice(step.token, step.piece_bytes, step.logp))
    return _StepJson(
        own.token,
        own.logprob,
        own.bytes,
        own.id,
        listed(step.top),
        _StepDetailsJson(
            delta=step.contrast,
            changed=step.changed,
            likeliest_id=step.likeliest,
            target_rank=step.target_rank,
            target_logprob=step.target_logp,
            expert_logprob=step.expert_logp,
            base_logprob=step.base_logp,
            target_choice=_token(step.target_choice),
            target_top=listed(step.target_top),
            expert_top=listed(step.expert_top),
            base_top=listed(step.base_top),
        ),
    )


def _token(one: Choice) -> _TokenJson:
    piece = one.piece_bytes
    return _TokenJson(piece.decode("utf-8", "replace"), one.logp, list(piece), one.token)


def _speed(draft_stats: DraftStats) -> JsonObject:
    return {
        "forwards_per_token": draft_stats.forwards_per_token(),
        "gated": draft_stats.proxies_skipped,
        "drafted": draft_stats.drafted,
        "accepted": draft_stats.accepted,
        "acceptance": draft_stats.acceptance,
        "by_source": msgspec.to_builtins(draft_stats.by_source),
    }


# --- reading --------------------------------------------------------------------------------------


def answer_from(value: object) -> Answer:
    """The answer that a JSON object holds; see `answer_object`.

    Raises:
        UsageError: a field is missing or broken, or fields contradict each other.
    """
    try:
        return _answer(convert(value, _AnswerJson))
    except ParseError as error:
        raise UsageError(f"This is not an answer that can be read: {error}. {_HOW}") from None


def _answer(given: _AnswerJson) -> Answer:
    choice, usage, summary = given.choices[0], given.usage, given.capt
    raw = given.object == "text_completion"
    message = choice.message
    text = choice.text if raw else message.content if message else UNSET
    if text is UNSET:
        raise ParseError("choices.message is missing")
    if choice.logprobs is None:
        raise UsageError(_NO_LOGPROBS)
    steps = [_step(index, each) for index, each in enumerate(choice.logprobs.content)]
    finish = choice.finish_reason
    if steps and finish in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION):
        steps[-1] = replace(steps[-1], finish=finish)  # the others end between steps
    for each in summary.weights:
        if len(each.powers) % 2 == 0:
            raise ParseError("capt.weights.powers is not one number and two for each pair")
    reasoning = message.reasoning_content if message else None
    details = usage.completion_tokens_details
    answer = Answer(
        steps=steps,
        text=_whole(text, b"".join(step.piece_bytes for step in steps)),
        finish=finish,
        model=given.model,
        raw=raw,
        thoughts=(reasoning or "").encode("utf-8", "replace"),
        thought_tokens=details.reasoning_tokens if details else 0,
        structured=summary.structured == "complete" if summary.structured else None,
        # Names of others are left out.
        prompt_tokens={
            role: count
            for role, count in usage.prompt_tokens_by_model.items()
            if _ROLE.fullmatch(role)
        },
        context_limit=usage.context_limit,
        context={
            role: (one.tokens, one.limit)
            for role, one in (usage.context_by_model or {}).items()
            if _ROLE.fullmatch(role)
        },
        weights=tuple((tuple(each.powers), each.weight) for each in summary.weights),
        timings=given.timings,
        # One line each: a file could else write lines that look like ours.
        notices=tuple(" ".join(line.split()) for line in given.warnings),
        provenance=given.provenance,
        created=given.created or None,
        id=given.id,
        alone=_answer(summary.target_alone) if summary.target_alone else None,
        sources=summary.sources or None,
    )
    own = set(warnings(answer))  # found again from the answer itself
    return replace(answer, notices=tuple(line for line in answer.notices if line not in own))


def _step(index: int, given: _StepJson) -> Step:
    more, own = given.capt, _choice(given)
    step = Step(
        index=index,
        token=own.token,
        piece_bytes=own.piece_bytes,
        logp=own.logp,
        target_logp=_known(more.target_logprob),
        target_rank=more.target_rank,
        target_choice=_choice(more.target_choice),
        contrast=more.delta,
        top=tuple(map(_choice, given.top_logprobs)),
        target_top=tuple(map(_choice, more.target_top)),
        expert_top=tuple(map(_choice, more.expert_top)),
        base_top=tuple(map(_choice, more.base_top)),
        expert_logp=more.expert_logprob,
        base_logp=more.base_logprob,
        likeliest=more.likeliest_id,
        proxies_skipped=more.delta is None,
    )
    if step.changed != more.changed:
        raise ParseError(
            "it contradicts itself: choices.logprobs.content.capt.changed is not what its tokens "
            "say"
        )
    return step


def _choice(given: _TokenJson) -> Choice:
    return Choice(given.id, bytes(given.bytes), _known(given.logprob))


def _known(number: float | None) -> float:
    return math.nan if number is None else number


def _whole(text: str, joined: bytes) -> bytes:
    """The bytes of the answer: those of its tokens, and what was held back at an interruption."""
    known = joined.decode("utf-8", "replace")
    if text == known:
        return joined
    # A character that an interruption cut is whole in the text but not in the tokens.
    known = known.rstrip("\ufffd")
    if not text.startswith(known):
        raise ParseError("it contradicts itself: its text is not that of its tokens")
    return text.encode("utf-8", "replace")
