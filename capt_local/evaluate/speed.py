"""How fast answers come, and what it costs beside llama.cpp itself.

Modes run in turn on the same prompts in one process, so that their ratios hold on a machine whose
speed drifts; absolute figures do not carry over to another run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from capt_local.decode.options import GenerateOptions, Method
from capt_local.engine.header import read_header
from capt_local.engine.memory import estimate
from capt_local.engine.options import LoadOptions
from capt_local.runtime import Runtime

MODES: Mapping[str, Method] = {"target": Method.TARGET, "exact-steps": Method.CAPT}


@dataclass(slots=True)
class Mode:
    """What one mode took, summed over prompts.

    Attributes:
        prompt_tokens: of the target.
        prompt_seconds: all models.
        tokens: of the answers.
        seconds: from the first token's choice to the last one's.
        inside: the part of `seconds` in llama.cpp (computing and waiting for it).
        forwards: tokens decoded for the answers, by role.
        rates: tokens a second of each answer.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    inside: float = 0.0
    forwards: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    def as_object(self) -> dict[str, object]:
        """Figures for a script."""
        return {
            "prefill_tokens_per_s": self.prompt_tokens / self.prompt_seconds,
            "generate_tokens_per_s": self.tokens / self.seconds,
            "generate_tokens_per_s_spread": (
                statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0
            ),
            "forwards_per_token": {
                role: count / self.tokens for role, count in self.forwards.items()
            },
            "outside_decode_share": (self.seconds - self.inside) / self.inside,
            "outside_decode_ms_per_token": 1000 * (self.seconds - self.inside) / self.tokens,
            "tokens": self.tokens,
        }


def bench(
    runtime: Runtime,
    prompts: Sequence[str],
    options: Mapping[str, GenerateOptions],
    *,
    raw: bool,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Mode]:
    """Answers every prompt once in every mode, in turn.

    Args:
        runtime: with all models of the modes.
        prompts: at least one.
        options: of each mode, by its name.
        raw: whether prompts are texts to go on with.
        progress: called with the part that is done.

    Returns:
        What each mode took. The first prompt is run once more before everything, unmeasured.
    """
    modes = {name: Mode() for name in options}
    total = (len(prompts) + 1) * len(options)
    done = 0
    for number, prompt in enumerate([prompts[0], *prompts]):
        for name, how in options.items():
            _answer(runtime, prompt, how, modes[name] if number else Mode(), raw=raw)
            done += 1
            progress(done / total)
    return modes


def memory_over(runtime: Runtime) -> int:
    """Bytes that this process holds beyond the model files and the KV caches."""
    rest = int(psutil.Process().memory_info().rss)
    counted: set[Path] = set()
    for role, model in runtime.models.items():
        path = runtime.bundle.models[role].path.resolve()
        if path not in counted:  # models of one file share its weights
            rest -= path.stat().st_size
            counted.add(path)
        options = LoadOptions(context=model.context_limit)
        rest -= estimate(read_header(path), options).kv_cache
    return rest


def _answer(
    runtime: Runtime, prompt: str, options: GenerateOptions, mode: Mode, *, raw: bool
) -> None:
    runtime.forget()  # nothing may be left of the prompt of another mode
    generation = runtime.generate(prompt, options, raw=raw)
    next(generation)
    inside, seconds, decoded = _inside(runtime), generation.generate_seconds, runtime.decoded()
    count = sum(1 for _ in generation)
    if not count:
        return
    spent = generation.generate_seconds - seconds
    mode.prompt_tokens += generation.prompt_tokens["target"]
    mode.prompt_seconds += generation.prompt_seconds
    mode.tokens += count
    mode.seconds += spent
    mode.inside += _inside(runtime) - inside
    mode.rates.append(count / spent)
    for role, after in runtime.decoded().items():
        mode.forwards[role] = mode.forwards.get(role, 0) + after - decoded[role]


def _inside(runtime: Runtime) -> float:
    return sum(model.seconds for model in runtime.models.values())
