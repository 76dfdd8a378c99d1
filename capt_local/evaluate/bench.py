"""Speed of answering: modes that take turns on the same prompts, so that ratios hold under drift.

Modes are ways of answering: the target alone, the binding's own `Llama`, the ensemble step by step
and with drafts, and many requests at once. Each prompt is answered by every mode before the next;
the first one is answered once more before everything, unmeasured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import psutil

from capt_local.decoding.batching import Request
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, ContextOverflow, UsageError
from capt_local.evaluate.items import Kind
from capt_local.evaluate.run import shortened
from capt_local.evaluate.score import is_lines, text_of, whole_file
from capt_local.evaluate.styles import read_style
from capt_local.evaluate.tasks import Task, read_task
from capt_local.llama.plain import PlainLlama
from capt_local.prompting.messages import Message
from capt_local.runtime import Runtime
from capt_local.strict_json import NotReadable, Problems, lines, parse_object, read_bytes

TARGET, STEPS, LLAMA = "target", "exact-steps", "llama"
_STYLE = "zero-shot"


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt.

    Attributes:
        text: a question, a conversation, or a text to go on with.
        raw: whether it is the latter.
    """

    text: str | tuple[Message, ...]
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """What one answer took.

    Attributes:
        prompt_tokens: of the target.
        prompt_seconds: for the prompt, all models.
        tokens: of the answer, in the target's vocabulary.
        seconds: for the answer behind the prompt.
        outside: the part of `seconds` that was not spent in llama.cpp; None if not known.
        decoded: tokens decoded for the answer, by role.
    """

    prompt_tokens: int
    prompt_seconds: float
    tokens: tuple[int, ...]
    seconds: float
    outside: float | None = None
    decoded: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Tokens that took decoding: the first one comes from the last row of the prompt."""
        return max(len(self.tokens) - 1, 0)

    @property
    def rate(self) -> float | None:
        """Tokens a second, as llama-bench counts them; None for an answer of one token."""
        return self.steps / self.seconds if self.steps else None


Mode = Callable[[BenchPrompt], Timing]


def runtime_mode(runtime: Runtime, options: GenerateOptions, cancel: Callable[[], bool]) -> Mode:
    """Answers with our own runtime, with nothing left of the prompt before."""

    def answer(prompt: BenchPrompt) -> Timing:
        runtime.forget()
        generation = runtime.generate(prompt.text, options, raw=prompt.raw, cancel=cancel)
        generation.prepare()
        inside, decoded = _inside(runtime), runtime.decoded()
        tokens = tuple(step.token for step in generation)
        _raise_if_interrupted(generation)
        inside = _inside(runtime) - inside
        return Timing(
            prompt_tokens=generation.prompt_tokens["target"],
            prompt_seconds=generation.prompt_seconds or 0.0,
            tokens=tokens,
            seconds=generation.generate_seconds,
            outside=generation.generate_seconds - inside,
            decoded={role: n - decoded[role] for role, n in runtime.decoded().items()},
        )

    return answer


def llama_mode(
    plain: PlainLlama, runtime: Runtime, options: GenerateOptions, cancel: Callable[[], bool]
) -> Mode:
    """Answers greedily with the target alone, through the binding's own `Llama`."""
    alone = replace(options, method=Method.TARGET)

    def answer(prompt: BenchPrompt) -> Timing:
        generation = runtime.generate(prompt.text, alone, raw=prompt.raw)
        generation.end()  # only its prompt is wanted, and whether that fits
        given = generation.prompts["target"].tokens
        target = runtime.models["target"]
        most = min(options.max_tokens, target.context_limit - len(given))
        ends = target.vocabulary.is_end
        started = time.perf_counter()
        coming = plain.tokens(given)
        tokens = [next(coming)]
        first = time.perf_counter()
        while len(tokens) < most and not ends[tokens[-1]]:
            if cancel():
                raise Cancelled("Stopped on request.")
            tokens.append(next(coming))
        done = time.perf_counter()
        return Timing(len(given), first - started, tuple(tokens), done - first)

    return answer


@dataclass(frozen=True, slots=True)
class ManyTiming:
    """Groups of prompts that were answered at once.

    Attributes:
        parallel: prompts in a group.
        seconds: of each group, prompts included.
        speedups: over the same prompts one after the other, of each group.
        answers: tokens of each answer, in the order of the prompts.
    """

    parallel: int
    seconds: tuple[float, ...]
    speedups: tuple[float, ...]
    answers: tuple[tuple[int, ...], ...]

    def as_object(self) -> dict[str, object]:
        """For `--json`."""
        tokens = sum(map(len, self.answers))
        return {
            "generate_tokens_per_s": None,
            "wall_tokens_per_s": tokens / sum(self.seconds),
            "requests_per_s": len(self.answers) / sum(self.seconds),
            "groups": len(self.seconds),
            "tokens": tokens,
        }


def time_many(
    runtime: Runtime,
    options: GenerateOptions,
    prompts: Sequence[BenchPrompt],
    alone: Sequence[Timing],
    parallel: int,
    cancel: Callable[[], bool],
) -> ManyTiming:
    """Answers prompts in groups of `parallel`; those that fill no group are left out.

    Args:
        runtime: with all models.
        options: of every answer.
        prompts: that fit.
        alone: what each took by itself.
        parallel: at least 2.
        cancel: stops the run.

    Raises:
        UsageError: there are fewer prompts than one group.
        MemoryShortage: so many do not fit at once.
        Cancelled: the user stopped it.
    """
    if len(prompts) < parallel:
        raise UsageError(f"--parallel {parallel} needs as many prompts that fit, or more.")

    def group(start: int) -> tuple[float, dict[int, tuple[int, ...]]]:
        chosen = prompts[start : start + parallel]
        requests = [Request(each.text, options, each.raw) for each in chosen]
        found, started = {}, time.perf_counter()
        for result in runtime.generate_many(requests, parallel=parallel, cancel=cancel):
            if result.error is not None:
                raise result.error
            if result.generation is not None:
                _raise_if_interrupted(result.generation)
            found[result.index] = tuple(step.token for step in result.steps)
        return time.perf_counter() - started, found

    group(0)  # makes the contexts; not measured
    seconds, speedups, answers = [], [], list[tuple[int, ...]]()
    for start in range(0, len(prompts) - parallel + 1, parallel):
        spent, found = group(start)
        single = sum(t.prompt_seconds + t.seconds for t in alone[start : start + parallel])
        seconds.append(spent)
        speedups.append(single / spent)
        answers += [found[index] for index in range(parallel)]
    return ManyTiming(parallel, tuple(seconds), tuple(speedups), tuple(answers))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of one mode over that of another, prompt by prompt: median and quartiles."""

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """From the ratio of each prompt, at least one."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values
        return cls(statistics.median(values), quartiles[0], quartiles[-1], len(values))

    def as_object(self) -> dict[str, object]:
        """For `--json`."""
        return {"median": self.median, "low": self.low, "high": self.high, "pairs": self.pairs}


@dataclass(frozen=True, slots=True)
class Sameness:
    """Answers of one mode beside those of another, token by token.

    Attributes:
        reference: the other mode.
        same: equal answers.
        answers: how many were compared.
        differences: prompt (from 1) and step (from 0) of the first token that differs.
    """

    reference: str
    same: int
    answers: int
    differences: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, reference: str, theirs: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]
    ) -> Sameness:
        """Compares answers to the same prompts."""
        found = []
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True), start=1):
            if tuple(one) != tuple(other):
                size = min(len(one), len(other))
                step = next((i for i in range(size) if one[i] != other[i]), size)
                found.append((number, step))
        return cls(reference, len(ours) - len(found), len(ours), tuple(found))

    def as_object(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "compared_with": self.reference,
            "same_answers": self.same,
            "compared_answers": self.answers,
            "differences": [{"prompt": p, "step": s} for p, s in self.differences],
        }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a run measured.

    Attributes:
        timings: of each mode, by prompt.
        too_long: numbers of the prompts that do not fit, from 1.
        prompts: that were answered by all modes.
        many: all of them at once; None where that was not wanted.
    """

    timings: Mapping[str, Sequence[Timing]]
    prompts: Sequence[BenchPrompt]
    too_long: Sequence[int] = ()
    many: ManyTiming | None = None

    def prefill(self, name: str) -> float:
        """Prompt tokens of the target a second, all models of the mode."""
        each = self.timings[name]
        return sum(t.prompt_tokens for t in each) / sum(t.prompt_seconds for t in each)

    def rate(self, name: str) -> float | None:
        """Tokens of the answers a second; None where every answer has one token."""
        steps = sum(t.steps for t in self.timings[name])
        return steps / sum(t.seconds for t in self.timings[name]) if steps else None

    def decoded(self, name: str) -> dict[str, float]:
        """Tokens that each model decoded for one of the answer, by role."""
        each = self.timings[name]
        steps = max(sum(t.steps for t in each), 1)
        roles = dict.fromkeys(role for t in each for role in t.decoded)
        return {role: sum(t.decoded.get(role, 0) for t in each) / steps for role in roles}

    def outside_ms(self, name: str) -> float | None:
        """Milliseconds a token outside llama.cpp; None if not known."""
        known = [t for t in self.timings[name] if t.outside is not None and t.steps]
        if not known:
            return None
        return 1000 * sum(t.outside or 0.0 for t in known) / sum(t.steps for t in known)

    def ratios(self) -> dict[str, Ratio]:
        """Over the target alone, of drafts over exact steps, of many over one at a time."""
        found = {}
        for name, each in self.timings.items():
            for other in (TARGET, STEPS):
                if name == other or other not in self.timings or (name, other) == (TARGET, STEPS):
                    continue
                pairs = zip(each, self.timings[other], strict=True)
                values = [a.rate / b.rate for a, b in pairs if a.rate and b.rate]
                if values and (other == TARGET or name != LLAMA):
                    found[f"{name}/{other}"] = Ratio.of(values)
        if self.many is not None:
            found[f"many-{self.many.parallel}/{STEPS}"] = Ratio.of(self.many.speedups)
        return found

    def same(self) -> dict[str, Sameness]:
        """Ours with drafts, and many at once, beside exact steps; `Llama` beside the target."""
        answers = {name: [t.tokens for t in each] for name, each in self.timings.items()}
        found = {}
        for name, ours in answers.items():
            reference = TARGET if name == LLAMA else STEPS
            if name not in (TARGET, STEPS) and reference in answers:
                found[name] = Sameness.of(reference, answers[reference], ours)
        if self.many is not None and STEPS in answers:
            ours = list(self.many.answers)
            theirs = answers[STEPS][: len(ours)]
            found[f"many-{self.many.parallel}"] = Sameness.of(STEPS, theirs, ours)
        return found

    def as_object(self) -> dict[str, object]:
        """For `--json`."""
        modes: dict[str, dict[str, object]] = {
            name: {
                "prefill_tokens_per_s": self.prefill(name),
                "generate_tokens_per_s": self.rate(name),
                "positions_per_token": self.decoded(name),
                "outside_decode_ms_per_token": self.outside_ms(name),
                "tokens": sum(t.steps for t in each),
                "answers": len(each),
            }
            for name, each in self.timings.items()
        }
        if self.many is not None:
            modes[f"many-{self.many.parallel}"] = self.many.as_object()
        for name, same in self.same().items():
            modes[name] |= same.as_object()
        ratios = self.ratios()
        return {
            "modes": modes,
            "ratios": {name: ratio.median for name, ratio in ratios.items()},
            "ratio_spread": {name: ratio.as_object() for name, ratio in ratios.items()},
            "prompts": {"measured": len(self.prompts), "too_long": list(self.too_long)},
        }


def take_turns(
    modes: Mapping[str, Mode],
    prompts: Sequence[BenchPrompt],
    progress: Callable[[float], None] = lambda _: None,
) -> BenchResult:
    """Answers every prompt in every mode; the next prompt begins with another mode.

    Raises:
        UsageError: no prompt fits.
        Cancelled: the user stopped it.
    """
    names, done, warm = list(modes), 0, False
    rounds: list[dict[str, Timing]] = []
    too_long, fitting = [], []
    for number, prompt in enumerate(prompts):
        shift = number % len(names)
        order = [*names[shift:], *names[:shift]]
        found: dict[str, Timing] = {}
        try:
            for name in order if warm else [*order, *order]:
                found[name] = modes[name](prompt)
                done += 1
                progress(done / (len(names) * (len(prompts) + 1)))
        except ContextOverflow:
            too_long.append(number + 1)
            continue
        warm = True
        rounds.append(found)
        fitting.append(prompt)
    if not rounds:
        raise UsageError("No prompt fits into the context; a larger --ctx-size may help.")
    timings = {name: [each[name] for each in rounds] for name in names}
    return BenchResult(timings, fitting, too_long)


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(psutil.Process().memory_info().rss)


def read_prompts(
    path: Path, what: str, *, limit: int | None = None, size: int | None = None, raw: bool = False
) -> list[BenchPrompt]:
    """The prompts of a file.

    Args:
        path: a task as `capt-local eval` takes it (its items are asked as there, zero-shot), JSON
            Lines with a `prompt` or `text` each, or a text file, which is one prompt.
        what: what errors call the file; its name may be a patient's.
        limit: only the first so many.
        size: only so many bytes of each input (never a part of a character).
        raw: asks without a chat template.

    Raises:
        UsageError: the file cannot be read, or a line is not as it should be (with its number).
    """
    if path.is_dir():
        return _of_task(read_task(path, what=what), limit, size, raw=raw)
    data = read_bytes(path, what, pipes=not is_lines(path))
    if not is_lines(path):
        return [BenchPrompt(whole_file(data, what, size).data.decode(), raw)]
    if _is_task(data):
        return _of_task(read_task(path, what=what), limit, size, raw=raw)
    problems, found = Problems(what), list[BenchPrompt]()
    for number, line in lines(data):
        if limit is not None and len(found) == limit:
            break
        try:
            found.append(BenchPrompt(_text(parse_object(line), number, size), raw))
        except NotReadable as error:
            problems.add(number, error)
    problems.raise_first()
    if not found:
        raise UsageError(f"{what} holds no prompt.")
    return found


def standard_text(count: Callable[[bytes], int], tokens: int) -> str:
    """The beginning of invented notes that takes about so many tokens, and not more.

    Args:
        count: tokens that a text takes as a prompt.
        tokens: at least as many as the shortest text takes.

    Raises:
        UsageError: the notes are shorter, or one character is longer.
    """
    notes = (resources.files("capt_local") / "data" / "bench_notes.txt").read_bytes().strip()
    if count(notes) < tokens:
        raise UsageError(
            f"The text that bench measures on is {count(notes)} tokens long in this target, which "
            f"is less than the {tokens} that --prompt-tokens asks for."
        )
    least, most = 0, len(notes)
    while most - least > 1:  # a longer text may take fewer tokens, but hardly
        middle = (least + most) // 2
        if count(notes[:middle]) <= tokens:
            least = middle
        else:
            most = middle
    if not least:
        raise UsageError(f"A prompt of {tokens} tokens is too short to measure; allow more.")
    return notes[:least].decode()


def _inside(runtime: Runtime) -> float:
    """Seconds in llama.cpp so far, all models."""
    return sum(model.seconds for model in runtime.models.values())


def _raise_if_interrupted(generation: Generation) -> None:
    if generation.finish is FinishReason.INTERRUPTED:
        raise Cancelled("Stopped on request.")


def _is_task(data: bytes) -> bool:
    """Whether the first line is an item of a task; what is wrong with it is found later."""
    for _, line in lines(data):
        try:
            return {"task", "kind"} <= set(parse_object(line))
        except NotReadable:
            return False
    return False


def _of_task(task: Task, limit: int | None, size: int | None, *, raw: bool) -> list[BenchPrompt]:
    task, _ = shortened(task, size)
    items = task.items[:limit]
    if task.kind is Kind.PERPLEXITY:
        return [BenchPrompt(item.input, raw) for item in items]
    style = read_style(_STYLE)
    if raw:
        return [BenchPrompt(style.text(item, task), raw=True) for item in items]
    return [BenchPrompt(tuple(style.messages(item, task))) for item in items]


def _text(value: dict[str, object], number: int, size: int | None) -> str:
    if "prompt" in value and "text" in value:
        raise NotReadable('both "prompt" and "text"')
    if "prompt" in value:
        value = {**value, "text": value["prompt"]}
    return text_of(value, number, size).data.decode()
