"""Generation speed: modes alternate on the same prompts, so that ratios hold under drift.

Modes are the target alone, the binding's own `Llama`, the ensemble step by step and with drafts,
and many requests at once. Each prompt is answered by every mode before the next; the first one is
answered once more before everything, unmeasured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.decoding.options import FinishReason, GenerateOptions, Method
from capt_local.errors import Cancelled, ContextOverflow, UsageError
from capt_local.evaluate.tasks import Kind, messages, read_task
from capt_local.prompting.messages import Message

if TYPE_CHECKING:
    from capt_local.decoding.loop import Generation
    from capt_local.llama.load_models import PlainLlama
    from capt_local.runtime import Runtime

TARGET, STEPS, LLAMA = "target", "exact-steps", "llama"
_INVENTED = 2000  # characters


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A question, a conversation, or, with `raw`, a text to go on with."""

    text: str | tuple[Message, ...]
    raw: bool = False


def read_prompts(path: Path, what: str, limit: int | None) -> list[BenchPrompt]:
    """The first items of a task as `eval` asks them; see `read_task`."""
    task = read_task(path, what=what)
    if task.kind is Kind.PERPLEXITY:
        return [BenchPrompt(item.input, raw=True) for item in task.items[:limit]]
    return [BenchPrompt(tuple(messages(item, task))) for item in task.items[:limit]]


def synthetic_prompt() -> BenchPrompt:
    """The beginning of fictitious notes, about 500 tokens."""
    notes = (resources.files("capt_local") / "data" / "bench_notes.txt").read_text("utf-8")
    return BenchPrompt(notes[:_INVENTED].rpartition(" ")[0], raw=True)


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """The timings of one answer."""

    prompt_tokens: int  # of the target
    prompt_seconds: float  # all models
    tokens: tuple[int, ...]  # of the answer, in the target's vocabulary
    seconds: float  # for the answer behind the prompt
    outside: float | None = None  # the part of `seconds` outside llama.cpp
    decoded: Mapping[str, int] = field(default_factory=dict)  # tokens for the answer, by role

    @property
    def steps(self) -> int:
        """Tokens that took decoding: the first one comes from the last row of the prompt."""
        return max(len(self.tokens) - 1, 0)


Mode = Callable[[BenchPrompt], AnswerTime]


def runtime_mode(runtime: Runtime, options: GenerateOptions, cancel: Callable[[], bool]) -> Mode:
    """A mode of our own runtime, with empty KV caches for each prompt."""

    def seconds_inside() -> float:
        return sum(model.seconds for model in runtime.models.values())

    def answer(prompt: BenchPrompt) -> AnswerTime:
        runtime.forget()
        generation = runtime.generate(prompt.text, options, raw=prompt.raw, cancel=cancel)
        generation.prepare()
        inside, decoded = seconds_inside(), runtime.decoded()
        tokens = tuple(step.token for step in generation)
        _raise_if_interrupted(generation)
        return AnswerTime(
            prompt_tokens=generation.prompt_tokens["target"],
            prompt_seconds=generation.prompt_seconds or 0.0,
            tokens=tokens,
            seconds=generation.generate_seconds,
            outside=generation.generate_seconds - (seconds_inside() - inside),
            decoded={role: n - decoded[role] for role, n in runtime.decoded().items()},
        )

    return answer


def llama_mode(
    plain: PlainLlama, runtime: Runtime, options: GenerateOptions, cancel: Callable[[], bool]
) -> Mode:
    """Answers greedily with the target alone, through the binding's own `Llama`."""
    alone = replace(options, method=Method.TARGET)

    def answer(prompt: BenchPrompt) -> AnswerTime:
        generation = runtime.generate(prompt.text, alone, raw=prompt.raw)
        generation.end()  # only its prompt is wanted, and whether that fits
        prompt_tokens = generation.prompts["target"].tokens
        target = runtime.models["target"]
        most = min(options.max_tokens, target.context_limit - len(prompt_tokens))
        ends = target.vocabulary.is_end
        started = time.perf_counter()
        coming = plain.tokens(prompt_tokens)
        tokens = [next(coming)]
        first = time.perf_counter()
        while len(tokens) < most and not ends[tokens[-1]]:
            if cancel():
                raise Cancelled("Stopped on request.")
            tokens.append(next(coming))
        done = time.perf_counter()
        return AnswerTime(len(prompt_tokens), first - started, tuple(tokens), done - first)

    return answer


def _raise_if_interrupted(generation: Generation) -> None:
    if generation.finish is FinishReason.INTERRUPTED:
        raise Cancelled("Stopped on request.")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a run measured."""

    times: Mapping[str, Sequence[AnswerTime]]  # of each mode, by prompt
    prompts: Sequence[BenchPrompt]  # that were answered by all modes
    too_long: Sequence[int] = ()  # numbers of the prompts that do not fit, from 1
    parallel: int = 0  # how many were answered at once
    many_seconds: tuple[float, ...] = ()  # of each group of so many prompts, prompts included
    many_tokens: tuple[tuple[int, ...], ...] = ()

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each mode; see docs/speed.md."""
        found = {name: _figures(times) for name, times in self.times.items()}
        if self.parallel:
            tokens = sum(map(len, self.many_tokens))
            found[f"many-{self.parallel}"] = {
                "generate_tokens_per_s": None,
                "wall_tokens_per_s": tokens / sum(self.many_seconds),
                "requests_per_s": len(self.many_tokens) / sum(self.many_seconds),
                "tokens": tokens,
            }
        for name, (reference, same, pairs) in self.same_answers().items():
            found[name] |= {"compared_with": reference, "same_answers": same, "answers": pairs}
        return found

    def ratios(self) -> dict[str, dict[str, float]]:
        """Speed over that of another mode, answer by answer: median and quartiles.

        Of the target over the binding's own loop, of the others over the target and exact steps,
        and of many at once over one at a time, with their prompts.
        """
        names = [name for name in self.times if name != LLAMA]
        compared = [(TARGET, LLAMA)]
        compared += [(name, TARGET) for name in names if name != TARGET]
        compared += [(name, STEPS) for name in names if name not in (TARGET, STEPS)]
        found = {}
        for name, other in compared:
            if {name, other} <= set(self.times):
                pairs = zip(self.times[name], self.times[other], strict=True)
                found[f"{name}/{other}"] = [
                    (one.steps / one.seconds) / (two.steps / two.seconds)
                    for one, two in pairs
                    if one.steps and two.steps
                ]
        if self.parallel:
            alone = [one.prompt_seconds + one.seconds for one in self.times[STEPS]]
            starts = range(0, len(self.many_tokens), self.parallel)
            found[f"many-{self.parallel}/{STEPS}"] = [
                sum(alone[start : start + self.parallel]) / seconds
                for start, seconds in zip(starts, self.many_seconds, strict=True)
            ]
        return {name: _spread(values) for name, values in found.items() if values}

    def same_answers(self) -> dict[str, tuple[str, int, int]]:
        """Of each mode: another one, how many answers are the same token by token, of how many."""
        answers = {name: [one.tokens for one in times] for name, times in self.times.items()}
        if self.parallel:
            answers[f"many-{self.parallel}"] = list(self.many_tokens)
        found = {}
        for name, ours in answers.items():
            reference = TARGET if name == LLAMA else STEPS
            if name not in (TARGET, STEPS) and reference in answers:
                pairs = list(zip(ours, answers[reference], strict=False))
                found[name] = reference, sum(one == two for one, two in pairs), len(pairs)
        return found


def _figures(times: Sequence[AnswerTime]) -> dict[str, Any]:
    steps = sum(one.steps for one in times)
    outside = [one.outside for one in times if one.outside is not None]
    prompt_tokens = sum(one.prompt_tokens for one in times)
    roles = dict.fromkeys(role for one in times for role in one.decoded)
    return {
        "prefill_tokens_per_s": prompt_tokens / sum(one.prompt_seconds for one in times),
        "generate_tokens_per_s": steps / sum(one.seconds for one in times) if steps else None,
        "outside_decode_ms_per_token": 1000 * sum(outside) / max(steps, 1) if outside else None,
        "positions_per_token": {
            role: sum(one.decoded.get(role, 0) for one in times) / max(steps, 1) for role in roles
        },
        "tokens": steps,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values
    return {
        "median": statistics.median(values),
        "low": quartiles[0],
        "high": quartiles[-1],
        "pairs": len(values),
    }


def run_interleaved(
    modes: Mapping[str, Mode],
    prompts: Sequence[BenchPrompt],
    progress: Callable[[float], None] = lambda _: None,
) -> BenchResult:
    """Answers every prompt in every mode; the order of modes rotates from prompt to prompt."""
    names, done, warm = list(modes), 0, False
    times: dict[str, list[AnswerTime]] = {name: [] for name in names}
    too_long, fitting = [], []
    for number, prompt in enumerate(prompts):
        shift = number % len(names)
        order = [*names[shift:], *names[:shift]]
        found: dict[str, AnswerTime] = {}
        try:
            for name in order if warm else [*order, *order]:
                found[name] = modes[name](prompt)
                done += 1
                progress(done / (len(names) * (len(prompts) + 1)))
        except ContextOverflow:
            too_long.append(number + 1)
            continue
        warm = True
        fitting.append(prompt)
        for name in names:
            times[name].append(found[name])
    if not fitting:
        raise UsageError("No prompt fits into the context; a larger --ctx-size may help.")
    return BenchResult(times, fitting, too_long)


def time_many(
    runtime: Runtime,
    options: GenerateOptions,
    found: BenchResult,
    parallel: int,
    cancel: Callable[[], bool],
) -> BenchResult:
    """Also answers the prompts in groups of `parallel`; those that fill no group are left out."""
    from capt_local.decoding.batching import Request  # the help needs none of it

    prompts = found.prompts
    if len(prompts) < parallel:
        raise UsageError(f"--parallel {parallel} needs as many prompts that fit, or more.")

    def group(start: int) -> tuple[float, list[tuple[int, ...]]]:
        chosen = prompts[start : start + parallel]
        requests = [Request(each.text, options, each.raw) for each in chosen]
        answers, started = {}, time.perf_counter()
        for result in runtime.generate_many(requests, parallel=parallel, cancel=cancel):
            if result.error is not None:
                raise result.error
            if result.generation is not None:
                _raise_if_interrupted(result.generation)
            answers[result.index] = tuple(step.token for step in result.steps)
        return time.perf_counter() - started, [answers[index] for index in range(len(chosen))]

    group(0)  # makes the contexts; not measured
    groups = [group(start) for start in range(0, len(prompts) - parallel + 1, parallel)]
    return replace(
        found,
        parallel=parallel,
        many_seconds=tuple(seconds for seconds, _ in groups),
        many_tokens=tuple(tokens for _, answers in groups for tokens in answers),
    )
