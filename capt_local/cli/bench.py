"""`capt-local bench`: the speed of all modes, side by side in one run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.options import JsonFlags, ModelFlags, SampleFlags, ViewFlags, flag
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import MemoryShortage, UsageError
from capt_local.evaluate.bench import (
    LLAMA,
    STEPS,
    TARGET,
    BenchPrompt,
    BenchResult,
    Mode,
    llama_mode,
    read_prompts,
    run_interleaved,
    runtime_mode,
    synthetic_prompt,
    time_many,
)
from capt_local.provenance import provenance
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle

REPETITIONS, ANSWER_TOKENS = 5, 128


@dataclass(frozen=True, kw_only=True)
class BenchFlags(JsonFlags, ModelFlags, SampleFlags, ViewFlags):
    """What is measured, and on which prompts."""

    modes: str | None = flag(
        "--modes A,B,...",
        "Only these; llama is the target through llama-cpp-python itself. Default: "
        "target, llama, exact-steps, auto, fast.",
    )
    prompts: list[Path] | None = flag(
        "--prompts FILE",
        "Measure on the items of these tasks of eval. Default: an invented note of about "
        "500 tokens, five times.",
    )
    limit: int | None = flag("--limit N", "Only the first N prompts of each file.", min=1)
    parallel: int | None = flag(
        "--parallel N",
        "Also answer N prompts at once, against the same ones one at a time.",
        min=2,
    )


def bench(flags: BenchFlags) -> int:
    """Prompt and answer speed of every mode, and their ratios answer by answer.

    Modes: target (alone), llama (the same through llama-cpp-python itself), exact-steps (the three,
    step by step), auto (with drafts), and fast (not all three at every token). They take turns on
    the same prompts, so ratios hold on a machine whose speed drifts; see docs/speed.md.

    Examples:
      capt-local bench

      capt-local bench --prompts notes.jsonl --limit 16 --parallel 8
    """
    import psutil

    from capt_local.llama.resources import physical_cores

    screen = Screen.standard(flags.verbose)
    if flags.prompts is None and (flags.limit or flags.parallel):
        raise UsageError("--limit and --parallel are about prompts; give also --prompts.")
    prompts: list[BenchPrompt] = []
    for number, path in enumerate(flags.prompts or (), 1):
        prompts += read_prompts(path, f"File {number} of --prompts", flags.limit)
    bundle = find_bundle(flags)
    most = ANSWER_TOKENS if flags.max_tokens is None else flags.max_tokens
    wanted = _modes(dataclasses.replace(flags, max_tokens=most), bundle)
    if flags.parallel is not None and STEPS not in wanted:
        raise UsageError(f"--parallel is compared with {STEPS}: name that in --modes, too.")
    alone = all(each.method is Method.TARGET for each in wanted.values())
    needed = Method.TARGET if alone else Method.CAPT
    with Interrupt() as interrupt:
        session = open_session(bundle, flags, screen, interrupt, wanted=needed)
        with session.runtime as runtime:
            found = _measure(
                session, prompts or [synthetic_prompt()] * REPETITIONS, wanted, flags.parallel
            )
            options = next(iter(wanted.values()))
            threads = session.load.threads or physical_cores()
            memory = psutil.Process().memory_info().rss
            sizes = {role: each.metadata.size for role, each in runtime.models.items()}
            about = dict(provenance(runtime, options, session.load, session.date))
    figures, ratios = found.figures(), found.ratios()
    if not any(each["tokens"] for each in figures.values()):
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    if flags.json:
        kind = "prompts" if prompts else "invented text"
        result: dict[str, Any] = {
            "modes": figures,
            "ratios": ratios,
            "prompts": {"measured": len(found.prompts), "too_long": list(found.too_long)},
            "workload": {"kind": kind, "max_tokens": most},
            "memory_bytes": memory,
            "threads": threads,
            "model_bytes": sizes,
            "provenance": about,
        }
        screen.line(dumps(result))
        return ExitCode.OK
    screen.show(_table(figures, ratios))
    for line in _remarks(found, figures, ratios):
        screen.line(line)
    screen.line(
        f"{len(found.prompts)} prompts, answers of at most {most} tokens; threads: {threads}; "
        f"memory {memory / 1e6:,.0f} MB"
    )
    return ExitCode.OK


def _modes(flags: BenchFlags, bundle: Bundle) -> dict[str, GenerateOptions]:
    """The selected modes, or all default modes that the bundle supports."""
    options = generate_options(bundle, flags, method=Method.TARGET)
    known = {TARGET: dataclasses.replace(options, speed=Speed.EXACT_STEPS)}
    if not options.sample.temperature:  # the binding draws in its own way
        known[LLAMA] = known[TARGET]
    if "expert" in bundle.models:
        together = generate_options(bundle, flags, method=Method.CAPT)
        for speed in (Speed.EXACT_STEPS, Speed.AUTO, Speed.FAST):
            known[str(speed)] = dataclasses.replace(together, speed=speed)
    if flags.modes is None:
        return known
    found: dict[str, GenerateOptions] = {}
    for number, name in enumerate(map(str.strip, flags.modes.split(",")), 1):
        if name not in known or name in found:
            what = "comes twice" if name in found else "is none of this run"
            raise UsageError(f"Number {number} of --modes {what}; there are {', '.join(known)}.")
        found[name] = known[name]
    return found


def _measure(
    session: Session,
    prompts: list[BenchPrompt],
    wanted: Mapping[str, GenerateOptions],
    parallel: int | None,
) -> BenchResult:
    """All modes in turn, with a progress line meanwhile."""
    from capt_local.llama.load_models import PlainLlama

    runtime, interrupt = session.runtime, session.interrupt

    def progress(part: float) -> None:
        interrupt.check()
        session.screen.progress("measuring", part)

    with contextlib.ExitStack() as stack:
        stack.callback(session.screen.clear_progress)
        modes: dict[str, Mode] = {}
        for name, options in wanted.items():
            if name != LLAMA:
                modes[name] = runtime_mode(runtime, options, interrupt)
                continue
            path = runtime.bundle.models["target"].path
            try:
                plain = PlainLlama(path, runtime.models["target"], session.load)
            except MemoryShortage as error:
                if len(wanted) == 1:
                    raise
                session.screen.note(f"note: {LLAMA} is left out. {error}")
            else:
                stack.enter_context(plain)
                modes[name] = llama_mode(plain, runtime, options, interrupt)
        found = run_interleaved(modes, prompts, progress)
        if parallel is None:
            return found
        return time_many(runtime, wanted[STEPS], found, parallel, interrupt)


def _table(figures: Mapping[str, Any], ratios: Mapping[str, Any]) -> Table:
    """A row for each mode."""
    headings = ("mode", "prompt t/s", "answer t/s", "x target", "x steps", "x llama", "outside ms",
                "positions T/E/B")  # fmt: skip
    rows = []
    for name, one in figures.items():
        over = (ratios.get(f"{name}/{other}") for other in (TARGET, STEPS, LLAMA))
        decoded = one.get("positions_per_token", {}).values()
        rows.append(
            (
                name,
                _number(one.get("prefill_tokens_per_s"), 1),
                _number(one["generate_tokens_per_s"], 1),
                *(_number(ratio["median"] if ratio else None, 3) for ratio in over),
                _number(one.get("outside_decode_ms_per_token"), 2),
                "/".join(f"{each:.2f}" for each in decoded) or "-",
            )
        )
    return Table("", tuple(rows), headings, right=tuple(range(1, len(headings))))


def _remarks(
    found: BenchResult, figures: Mapping[str, Any], ratios: Mapping[str, Any]
) -> Iterator[str]:
    """Spread of the ratios, many at once, same answers, prompts that do not fit."""
    for name, ratio in ratios.items():
        yield (
            f"{name}: {ratio['median']:.3f}, middle half {ratio['low']:.3f} to "
            f"{ratio['high']:.3f} of {ratio['pairs']}"
        )
    for name, one in figures.items():
        if "requests_per_s" in one:
            yield (
                f"{name}: {one['requests_per_s']:.2f} requests/s, {one['wall_tokens_per_s']:.1f} "
                "tokens/s with their prompts"
            )
        if "same_answers" in one:
            same = f"{one['same_answers']} of {one['answers']}"
            yield f"{name}: {same} answers as {one['compared_with']}"
    if found.too_long:
        yield f"{len(found.too_long)} prompts do not fit into the context and were left out."


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
