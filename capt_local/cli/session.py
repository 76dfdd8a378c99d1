"""What generate and demo share: from flags to a runtime, from a generation to an answer."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from capt_local.cli.answer_flags import step_writer
from capt_local.cli.files import checked
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags
from capt_local.cli.policy import check_unsigned, check_weights, permitted
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import (
    AlignOptions,
    CombineOptions,
    GenerateOptions,
    Method,
    SampleOptions,
)
from capt_local.decoding.step import FinishReason, Step
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.json import Answer, answer_of, new_id
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.decoding.loop import Generation
    from capt_local.llama.options import LoadOptions
    from capt_local.runtime import Runtime

_Value = TypeVar("_Value")
_SCORED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded bundle and what belongs to one run of a command."""

    runtime: Runtime
    screen: Screen
    interrupt: Interrupt
    load: LoadOptions
    date: datetime.date | None
    load_seconds: float


def find_bundle(flags: ModelFlags) -> Bundle:
    """The bundle that the flags name, or one made of explicit model files.

    Raises:
        UsageError: a bundle and files are given, or an expert or base without a target; or the site
            forbids such models.
        ModelError: there is no such bundle, or it is broken.
    """
    from capt_local.bundles import store
    from capt_local.bundles.manifest import Bundle

    if not (flags.target or flags.expert or flags.base or flags.expert_adapter):
        return permitted(store.find(flags.bundle or "demo"), flags.check)
    if flags.bundle is not None:
        raise UsageError("Give either --bundle, or --target with --expert and --base.")
    if flags.target is None:
        raise UsageError("--expert and --base need a --target.")
    check_unsigned("A model file that is given by its path")
    return Bundle.from_paths(flags.target, flags.expert, flags.base, flags.adapters())


def load_options(flags: ModelFlags, bundle: Bundle) -> LoadOptions:
    """How the models are loaded.

    Raises:
        UsageError: a value has no meaning.
    """
    from capt_local.llama.options import GpuLayers, LoadOptions

    layers: GpuLayers
    match flags.gpu_layers:
        case "auto":
            layers = "auto"
        case "all":
            layers = "all"
        case number if number.isascii() and number.isdecimal():
            layers = int(number)
        case _:
            raise UsageError("--gpu-layers takes a number, auto or all.")
    context = flags.ctx_size if flags.ctx_size is not None else bundle.context
    return LoadOptions(gpu_layers=layers, context=context, threads=flags.threads)


def generate_options(
    bundle: Bundle, how: MethodFlags, sample: SampleFlags, top: int
) -> GenerateOptions:
    """How the answer is made: flags first, then what the bundle says, then the defaults.

    Raises:
        UsageError: a value has no meaning.
    """
    said, chosen = bundle.defaults, method(bundle, how)
    ours, combine = GenerateOptions(), CombineOptions()
    alphas: tuple[float, ...] = ()
    if how.alpha is not None:
        alphas = _alphas(how.alpha)
    elif how.weights is None:  # of a method that uses the first pair: the first
        alphas = said.alphas if chosen.roles is None else said.alphas[:1]
    made = GenerateOptions(
        method=chosen,
        max_tokens=_first(sample.max_tokens, said.max_tokens, ours.max_tokens),
        stop=tuple(checked(text, "--stop") for text in sample.stop or ()),
        top=top,
        align=AlignOptions(
            kind=how.alignment or AlignOptions().kind,
            long_tokens=not how.no_long_tokens,
            healing=not how.no_healing,
        ),
        combine=CombineOptions(
            alphas=alphas,
            powers=_numbers(how.weights, "--weights takes numbers, as in 0.5,1,0.5."),
            plausibility=_first(how.plausibility, said.plausibility, combine.plausibility),
        ),
        sample=SampleOptions(
            temperature=_first(sample.temp, said.temperature, 0.0),
            top_k=sample.top_k,
            top_p=sample.top_p,
            min_p=sample.min_p,
            repeat_penalty=sample.repeat_penalty,
            repeat_window=sample.repeat_last_n,
            seed=sample.seed,
        ),
        repetition_stop=not sample.no_repetition_stop,
    )
    check_weights(made.combine)
    return made


def method(bundle: Bundle, how: MethodFlags) -> Method:
    """The method that was asked for, or that the bundle can do."""
    if how.method is not None:
        return how.method
    if len(bundle.models) == 1:
        return Method.TARGET
    return Method(bundle.defaults.method or Method.CAPT)


def pinned_date(flags: ModelFlags) -> datetime.date | None:
    """The date for chat templates, if one was given.

    Raises:
        UsageError: it is not a date.
    """
    if flags.date is None:
        return None
    try:
        return datetime.date.fromisoformat(flags.date)
    except ValueError:
        raise UsageError("--date takes a date as YYYY-MM-DD.") from None


def open_session(
    bundle: Bundle,
    flags: ModelFlags,
    screen: Screen,
    interrupt: Interrupt,
    *,
    wanted: Method = Method.CAPT,
    template: str | None = None,
    scores: bool = False,
) -> Session:
    """Loads the models that the method needs, with a progress line, and tells the notices.

    Known text is scored as many rows of logits at a time as may be read: with `scores` more.

    Raises:
        ModelError, MemoryShortage: see `Runtime.open`.
        Cancelled: Ctrl-C was pressed.
    """
    # Everything that can be wrong with the flags is found before anything heavy is imported.
    load, date = load_options(flags, bundle), pinned_date(flags)
    if scores:
        load = dataclasses.replace(load, max_rows=_SCORED_ROWS)
    from capt_local.runtime import Runtime

    def progress(role: str, fraction: float) -> None:
        interrupt.check()
        screen.progress(f"loading {role}", fraction)

    started = time.perf_counter()
    try:
        runtime = Runtime.open(
            bundle,
            load=load,
            progress=progress,
            check=flags.check,
            date=date,
            template=template,
            roles=wanted.roles,
        )
    finally:  # an error is told on a line of its own
        screen.clear_progress()
    session = Session(runtime, screen, interrupt, load, date, time.perf_counter() - started)
    _tell_loaded(session)
    return session


def _tell_loaded(session: Session) -> None:
    """The notices and, with -v, what was loaded."""
    screen, runtime = session.screen, session.runtime
    screen.notes(runtime.notices)
    limits = {role: model.context_limit for role, model in runtime.models.items()}
    smallest = min(limits, key=lambda role: limits[role], default="target")
    if limits and limits[smallest] < limits.get("target", 0):
        screen.notes(
            [
                f"the context of the {smallest} holds {limits[smallest]:,} tokens, that of the "
                f"target {limits['target']:,}: prompt and answer have to fit into the smaller one."
            ]
        )
    for role, model in runtime.models.items():
        about, adapter = model.metadata, runtime.bundle.models[role].adapter
        screen.detail(
            f"{role}: {about.architecture}, {about.file_type}, context {model.context_limit}, "
            f"{about.gpu_layers} layers on the GPU" + (f", {adapter}" if adapter else "")
        )
    screen.detail(f"loaded in {session.load_seconds:.2f} s")


def answer_to(
    session: Session,
    asked: str | Sequence[Message],
    options: GenerateOptions,
    *,
    raw: bool = False,
    show: Callable[[bytes], None] | None = None,
    think: Callable[[bytes], None] | None = None,
    keep: Callable[[Answer], None] | None = None,
) -> Answer:
    """Runs one generation to its end.

    Args:
        session: with the models.
        asked: the prompt.
        options: how the answer is made.
        raw: whether the prompt is text to go on with.
        show: called with the bytes of the answer as they come.
        think: called with those of the model's thoughts.
        keep: called with the part of an answer that an error ends; the error goes on.

    Raises:
        UsageError, ContextOverflow, NumericalError: see `Runtime.generate`.
    """
    generation = session.runtime.generate(asked, options, raw=raw, cancel=session.interrupt)
    steps: list[Step] = []
    tell = step_writer(show, think)
    try:
        for step in generation:
            steps.append(step)
            tell(step)
    except Exception:
        if keep is not None and not all(step.thought for step in steps):
            keep(_answer(session, generation, steps, options, FinishReason.ERROR, raw=raw))
        raise
    # An interrupted answer may end in bytes that no step brought.
    shown = sum(len(step.piece_bytes) for step in steps if not step.thought)
    if show is not None and len(generation.text_bytes) > shown:
        show(generation.text_bytes[shown:])
    return _answer(session, generation, steps, options, generation.finish, raw=raw)


def _answer(
    session: Session,
    generation: Generation,
    steps: list[Step],
    options: GenerateOptions,
    finish: FinishReason | None,
    *,
    raw: bool,
) -> Answer:
    return answer_of(
        generation,
        steps,
        session.runtime.bundle.id,
        load=session.load_seconds,
        finish=finish,
        raw=raw,
        notices=(*session.runtime.notices, *generation.notices),
        provenance=provenance(
            session.runtime, options, session.load, session.date, generation.text_bytes
        ),
        created=int(time.time()),
        id=new_id(),
    )


def _alphas(text: str) -> tuple[float, ...]:
    """Numbers, or none for `evidence`."""
    if text == "evidence":
        return ()
    return _numbers(text, "--alpha takes a number, one for each pair, or 'evidence'.")


def _numbers(text: str | None, wrong: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(wrong) from None


def _first(*values: _Value | None) -> _Value:
    """The first value that was given."""
    return next(value for value in values if value is not None)
