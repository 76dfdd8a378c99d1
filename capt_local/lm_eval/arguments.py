"""What the harness hands over, as the options of this program.

Arguments come as whatever the harness made of their text: numbers, truth values, lists.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capt_local.cli.options import MethodFlags, ModelFlags
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWING = ("do_sample", "temperature", "top_k", "top_p", "min_p")
_KNOWN = ("until", *_LENGTHS, *_DRAWING)
_LONGEST = 256  # tokens, where a task says nothing; the harness's own default


class ChatText(str):
    """A conversation on its way through the harness, which passes texts on: JSON of its turns."""

    __slots__ = ()

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, str]]) -> ChatText:
        """The text of a conversation."""
        return cls(json.dumps([dict(turn) for turn in turns]))

    def messages(self) -> list[Message]:
        """The turns."""
        return [Message(turn["role"], turn["content"]) for turn in json.loads(self)]


def model_flags(
    bundle: str | None,
    files: Mapping[str, str | None],
    ctx_size: int | None,
    threads: int | None,
    gpu_layers: int | str,
) -> ModelFlags:
    """Which models, as on the command line.

    Raises:
        UsageError: a value has no meaning.
    """
    target = files["target"]
    return ModelFlags(
        bundle=None if bundle is None else str(bundle),
        target=None if target is None else Path(str(target)),
        expert=_files(files["expert"]),
        base=_files(files["base"]),
        expert_adapter=_files(files.get("expert_adapter")),
        ctx_size=_count("ctx_size", ctx_size),
        threads=_count("threads", threads),
        gpu_layers=str(gpu_layers),
    )


def method_flags(
    method: str | None, alpha: float | str | None, plausibility: float | None
) -> MethodFlags:
    """How the models are combined, as on the command line.

    Raises:
        UsageError: there is no such method, or a value has no meaning.
    """
    if method is not None and method not in list(Method):
        raise UsageError(f"The model argument 'method' is one of {', '.join(Method)}.")
    return MethodFlags(
        method=None if method is None else Method(method),
        alpha=None if alpha is None else str(alpha),
        plausibility=_number("plausibility", plausibility),
    )


def answer_options(
    options: GenerateOptions, asked: Mapping[str, Any], seed: int
) -> GenerateOptions:
    """The options of one answer (`generate_until`).

    Args:
        options: method and weights.
        asked: the generation arguments of the task. `do_sample: false`, and leaving both it and
            `temperature` out, is temperature 0; `do_sample: true` alone is temperature 1.
        seed: of the draws.

    Raises:
        UsageError: an argument is not one of ours, or has no meaning.
    """
    if unknown := set(asked) - set(_KNOWN):
        raise UsageError(
            f"{len(unknown)} generation arguments are not known here. These are: "
            f"{', '.join(_KNOWN)}."
        )
    given = [_count(name, asked[name]) for name in _LENGTHS if asked.get(name) is not None]
    temperature = _number("temperature", asked.get("temperature"))
    draws = asked.get("do_sample")
    if draws is None:
        draws = bool(temperature)
    sample = dataclasses.replace(
        options.sample,
        temperature=(1.0 if temperature is None else temperature) if draws else 0.0,
        top_k=int(_number("top_k", asked.get("top_k")) or 0),
        top_p=_number("top_p", asked.get("top_p"), 1.0),
        min_p=_number("min_p", asked.get("min_p"), 0.0),
        seed=seed,
    )
    longest = next((length for length in given if length is not None), _LONGEST)
    return dataclasses.replace(
        options, max_tokens=longest, stop=_stops(asked.get("until")), sample=sample
    )


def _stops(until: object) -> tuple[str, ...]:
    texts = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError("The generation argument 'until' is a text or a list of texts.")
    return tuple(texts)


def _files(given: str | None) -> list[Path] | None:
    return None if given is None else [Path(file) for file in str(given).split(os.pathsep)]


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"The argument '{name}' is a whole number from 1.")
    return value


def _number(name: str, value: object, default: Any = None) -> Any:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"The argument '{name}' is a number.")
    return value
