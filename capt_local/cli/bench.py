"""`capt-local bench`: all ways of answering side by side in one run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from capt_local.cli.exits import ExitCode
from capt_local.cli.options import (
    CombineFlags,
    ModelFlags,
    SampleFlags,
    ViewFlags,
    option,
)
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
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
    resident,
    runtime_mode,
    standard_text,
    take_turns,
    time_many,
)
from capt_local.llama.plain import PlainLlama
from capt_local.llama.threads import physical_cores
from capt_local.provenance import provenance
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.runtime import Runtime

PROMPT_TOKENS, REPETITIONS, ANSWER_TOKENS = 512, 5, 128
_NONE = "-"


@dataclass(frozen=True, slots=True)
class BenchFlags:
    """What is measured on, and the form of the result."""

    modes: Annotated[
        str | None,
        option(
            "--modes",
            metavar="A,B,...",
            help="Only these; llama is the target through llama-cpp-python itself. Default: all.",
        ),
    ] = None
    prompts: Annotated[
        list[Path] | None,
        option(
            "--prompts",
            metavar="FILE|DIR",
            help='Measure on these: a task of eval, JSON Lines with a "prompt" or "text" each, or '
            "one text; several are possible. Default: an invented text of --prompt-tokens tokens.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        option("--limit", metavar="N", min=1, help="Only the first N prompts of each file."),
    ] = None
    max_input_bytes: Annotated[
        int | None,
        option("--max-input-bytes", metavar="N", min=1, help="Cut inputs to their first N bytes."),
    ] = None
    raw: Annotated[
        bool, option("--raw", help="Go on with the prompts as they are, without a template.")
    ] = False
    prompt_tokens: Annotated[
        int | None,
        option(
            "--prompt-tokens",
            metavar="N",
            min=1,
            help=f"Length of the invented text. Default: {PROMPT_TOKENS}, as pp{PROMPT_TOKENS}.",
        ),
    ] = None
    repetitions: Annotated[
        int | None,
        option(
            "-r",
            "--repetitions",
            metavar="N",
            min=1,
            help=f"How often the invented text is answered. Default: {REPETITIONS}.",
        ),
    ] = None
    parallel: Annotated[
        int | None,
        option(
            "--parallel",
            metavar="N",
            min=2,
            help="Also answer N prompts at once, against the same ones one at a time.",
        ),
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False

    def check(self) -> None:
        """Refuses flags that would do nothing.

        Raises:
            UsageError: there are such.
        """
        if self.prompts:
            if (self.prompt_tokens or self.repetitions) is not None:
                raise UsageError(
                    "--prompt-tokens and -r are about the invented text; leave out --prompts."
                )
            return
        given = {
            "--limit": self.limit,
            "--max-input-bytes": self.max_input_bytes,
            "--raw": self.raw or None,
            "--parallel": self.parallel,
        }
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is about the prompts of --prompts; give these too.")


def bench(
    what: BenchFlags, model: ModelFlags, how: CombineFlags, sample: SampleFlags, view: ViewFlags
) -> int:
    """Prompt and answer speed of every way of answering, and their ratios.

    Modes: target (alone), exact-steps (the three, step by step), auto and the sources of drafts,
    and llama: the target alone through llama-cpp-python. They take turns on the same prompts, so
    ratios hold on a machine whose speed drifts; see docs/speed.md.

    Examples:
      capt-local bench

      capt-local bench --prompts notes.jsonl --limit 20 --modes target,exact-steps,auto

      capt-local bench --prompts notes.jsonl --limit 16 --parallel 8
    """
    screen = Screen.standard(view.verbose)
    what.check()
    prompts = _given(what)
    bundle = find_bundle(model)
    most = ANSWER_TOKENS if sample.max_tokens is None else sample.max_tokens
    options = generate_options(bundle, how, dataclasses.replace(sample, max_tokens=most), 0)
    wanted = chosen_modes(what.modes, bundle, options)
    if what.parallel is not None and STEPS not in wanted:
        raise UsageError(f"--parallel is compared with {STEPS}: name that in --modes, too.")
    alone = all(each.method is Method.TARGET for each in wanted.values())
    with Interrupt() as interrupt:
        needed = Method.TARGET if alone else Method.CAPT
        session = open_session(bundle, model, screen, interrupt, wanted=needed)
        with session.runtime:
            found = measure(session, prompts or _invented(session.runtime, what), wanted, what)
            about = _about(session, options)
    if not any(found.rate(name) for name in found.timings):
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    memory = resident()
    if what.json:
        more = {
            "workload": {"kind": "prompts" if prompts else "invented text", "max_tokens": most},
            "memory_bytes": memory,
        }
        screen.line(dumps(found.as_object() | more | about))
        return ExitCode.OK
    screen.show(table(found, most, invented=not prompts))
    for line in remarks(found):
        screen.line(line)
    screen.line(
        f"{len(found.prompts)} prompts, answers of at most {most} tokens; threads: "
        f"{about['threads']}; memory {memory / 1e6:,.0f} MB"
    )
    return ExitCode.OK


def chosen_modes(
    names: str | None, bundle: Bundle, options: GenerateOptions
) -> dict[str, GenerateOptions]:
    """The modes that were asked for, or all that the bundle can do.

    Raises:
        UsageError: a mode is unknown or comes twice, or needs models that are not there.
    """
    steps = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
    known = {TARGET: dataclasses.replace(steps, method=Method.TARGET)}
    if "expert" in bundle.models:
        together = dataclasses.replace(options, method=Method.CAPT)
        order = sorted(Speed, key=lambda speed: speed is not Speed.EXACT_STEPS)
        known |= {str(speed): dataclasses.replace(together, speed=speed) for speed in order}
    if not options.sample.temperature:  # the binding draws in its own way
        known[LLAMA] = known[TARGET]
    if names is None:
        return known
    found: dict[str, GenerateOptions] = {}
    for number, name in enumerate(map(str.strip, names.split(",")), 1):
        if name not in known:
            raise UsageError(
                f"Number {number} of --modes is none of this run; there are {', '.join(known)}."
            )
        if name in found:
            raise UsageError(f"--modes names {name} twice.")
        found[name] = known[name]
    return found


def measure(
    session: Session,
    prompts: list[BenchPrompt],
    wanted: Mapping[str, GenerateOptions],
    what: BenchFlags,
) -> BenchResult:
    """All modes in turn, with a progress line meanwhile."""
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
            elif (plain := _plain(session, stack, only=len(wanted) == 1)) is not None:
                modes[name] = llama_mode(plain, runtime, options, interrupt)
        found = take_turns(modes, prompts, progress)
        if what.parallel is None:
            return found
        many = time_many(
            runtime,
            wanted[STEPS],
            found.prompts,
            found.timings[STEPS],
            what.parallel,
            interrupt,
        )
        return dataclasses.replace(found, many=many)


def table(found: BenchResult, most: int, *, invented: bool) -> Table:
    """A row for each mode."""
    first, second = "prompt t/s", "answer t/s"
    if invented:  # as llama-bench calls it
        tokens = next(iter(found.timings.values()))[0].prompt_tokens
        first, second = f"pp{tokens} t/s", f"tg{most} t/s"
    headings = ("mode", first, second, "x target", "x steps", "positions T/E/B", "outside ms")
    ratios, rows = found.ratios(), []
    for name in found.timings:
        over = [ratios.get(f"{name}/{other}") for other in (TARGET, STEPS)]
        decoded = found.decoded(name)
        outside = found.outside_ms(name)
        rows.append(
            (
                name,
                f"{found.prefill(name):.1f}",
                _number(found.rate(name), 1),
                *(_NONE if ratio is None else f"{ratio.median:.3f}" for ratio in over),
                "/".join(f"{each:.2f}" for each in decoded.values()) or _NONE,
                _number(outside, 2),
            )
        )
    return Table("", tuple(rows), headings, right=tuple(range(1, len(headings))))


def remarks(found: BenchResult) -> Iterator[str]:
    """Spread of the ratios, many at once, same answers, prompts that do not fit."""
    for name, ratio in found.ratios().items():
        yield (
            f"{name}: {ratio.median:.3f}, middle half {ratio.low:.3f} to {ratio.high:.3f} of "
            f"{ratio.pairs}"
        )
    if found.many is not None:
        each = found.many.as_object()
        yield (
            f"many-{found.many.parallel}: {each['requests_per_s']:.2f} requests/s, "
            f"{each['wall_tokens_per_s']:.1f} tokens/s with their prompts"
        )
    for name, same in found.same().items():
        places = ", ".join(f"prompt {p} at step {s}" for p, s in same.differences)
        yield (
            f"{name}: {same.same} of {same.answers} answers as {same.reference}"
            + (f"; others differ first in {places}" if places else "")
        )
    if found.too_long:
        yield f"{len(found.too_long)} prompts do not fit into the context and were left out."


def _about(session: Session, options: GenerateOptions) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "threads": session.load.threads or physical_cores(),
        "model_bytes": {role: each.metadata.size for role, each in session.runtime.models.items()},
        "provenance": dict(provenance(session.runtime, options, session.load, session.date)),
    }


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _given(what: BenchFlags) -> list[BenchPrompt]:
    """The prompts of the user; none without --prompts.

    Raises:
        UsageError: they cannot be read.
    """
    found: list[BenchPrompt] = []
    several = len(what.prompts or ()) > 1
    for number, path in enumerate(what.prompts or (), 1):
        name = f"File {number} of --prompts" if several else "The file of --prompts"
        found += read_prompts(path, name, limit=what.limit, size=what.max_input_bytes, raw=what.raw)
    return found


def _invented(runtime: Runtime, what: BenchFlags) -> list[BenchPrompt]:
    """The same invented text again and again, so that the spread is that of the machine.

    Raises:
        UsageError: it does not fit into the context of the target.
    """
    target = runtime.models["target"]
    wanted = what.prompt_tokens or PROMPT_TOKENS
    if wanted >= target.context_limit:
        raise UsageError(
            f"A prompt of {wanted} tokens leaves no room for an answer in a context of "
            f"{target.context_limit}: give a larger --ctx-size or a smaller --prompt-tokens."
        )
    count: Callable[[bytes], int] = lambda data: len(target.tokenize(data, special=False))  # noqa: E731
    prompt = BenchPrompt(standard_text(count, wanted), raw=True)
    return [prompt] * (what.repetitions or REPETITIONS)


def _plain(session: Session, stack: contextlib.ExitStack, *, only: bool) -> Any:
    """The target once more in the binding's own class; None, with a note, where it does not fit."""
    runtime = session.runtime
    path = runtime.bundle.models["target"].path
    try:
        return stack.enter_context(PlainLlama(path, runtime.models["target"], session.load))
    except MemoryShortage as error:
        if only:
            raise
        session.screen.note(f"note: {LLAMA} is left out. {error}")
        return None
