"""An answer as the JSON object that `--json` writes.

The shape is OpenAI's, so that existing readers work; what is ours lies under `capt` and
`provenance`. Everything is ASCII and valid JSON: numbers that are not finite become null.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from capt_local.decode.options import Powers
from capt_local.decode.speculate.tally import Tally
from capt_local.decode.step import Choice, FinishReason, Step

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
    weights: Sequence[tuple[Powers, float]] = ()
    timings: Timings = field(default_factory=Timings)
    notices: Sequence[str] = ()
    tally: Tally | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: int | None = None
    id: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that were made, thoughts included."""
        return len(self.steps) + self.thought_tokens


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


def warnings(answer: Answer) -> list[str]:
    """What a reader of the answer must know, in sentences."""
    lines = []
    if answer.finish is FinishReason.LENGTH:
        lines.append(
            f"the answer was ended after {answer.tokens} tokens and may be "
            "incomplete; raise --max-tokens (or --ctx-size) for more."
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
        "logprobs": {"content": [_step_object(step, top_logprobs) for step in answer.steps]},
    }


def _step_object(step: Step, top_logprobs: int) -> JsonObject:
    return {
        **_token(step.token, step.piece, step.logp),
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
    return _token(choice.token, choice.piece, choice.logp)


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


def _speed(tally: Tally) -> JsonObject:
    return {
        "forwards_per_token": tally.forwards_per_token(),
        "gated": tally.gated,
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
