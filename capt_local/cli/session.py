"""From flags to a runtime, from a generation to an answer."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from capt_local.cli.exits import Interrupt
from capt_local.cli.files import checked
from capt_local.cli.options import AskFlags, BestOfFlags, ModelFlags, SampleFlags
from capt_local.config import read_site
from capt_local.decoding.options import (
    CombineOptions,
    FinishReason,
    GenerateOptions,
    Method,
    SampleOptions,
    Step,
)
from capt_local.errors import UsageError
from capt_local.policy import permitted
from capt_local.prompting.messages import Message
from capt_local.provenance import provenance
from capt_local.report.json import Answer, answer_of, new_id
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle
    from capt_local.bundles.verify import Check
    from capt_local.decoding.loop import Generation
    from capt_local.llama.options import GpuLayers, LoadOptions, Placement
    from capt_local.rerank import Unsupported
    from capt_local.runtime import Runtime

_Value = TypeVar("_Value")
_SCORED_ROWS = 64
Writer = Callable[[bytes], None]


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
        UsageError: flags do not go together, or the site forbids such models.
        ModelError: there is no such bundle, or it is broken.
    """
    from capt_local.bundles import store
    from capt_local.bundles.manifest import AdapterFile, Bundle

    if not (flags.target or flags.expert or flags.base or flags.expert_adapter):
        found = store.find(flags.bundle or "demo").with_adapters(flags.adapter or ())
        return permitted(found, flags.verify)
    if flags.bundle is not None:
        raise UsageError("Give either --bundle, or --target with --expert and --base.")
    if flags.target is None:
        raise UsageError("--expert and --base need a --target.")
    adapters = [AdapterFile.parse(str(given)) for given in flags.expert_adapter or ()]
    bundle = Bundle.from_paths(flags.target, flags.expert, flags.base, adapters)
    return permitted(bundle.with_adapters(flags.adapter or ()), flags.verify)


def load_options(flags: ModelFlags, bundle: Bundle) -> LoadOptions:
    """How the models are loaded. Raises UsageError: a value has no meaning."""
    from capt_local.llama.options import LoadOptions

    placements = _placements(flags, bundle)
    general = placements.pop("")
    return LoadOptions(
        gpu_layers=general.gpu_layers,
        devices=general.devices,
        tensor_split=general.tensor_split,
        placements=placements,
        context=flags.ctx_size if flags.ctx_size is not None else bundle.context,
        threads=flags.threads,
        kv_type=flags.kv_type,
    )


def _placements(flags: ModelFlags, bundle: Bundle) -> dict[str, Placement]:
    """The device placement by role; the key "" holds that of all roles that no flag names."""
    from capt_local.llama.options import CPU, Placement

    def by_role(name: str, given: Sequence[str] | None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for text in given or ():
            role, colon, value = text.rpartition(":")
            if colon and role not in bundle.models:
                roles = ", ".join(bundle.models)
                raise UsageError(f"{name} names a role that is not there; there are {roles}.")
            if not value:
                raise UsageError(f"{name} has no value{' behind the role' * bool(colon)}.")
            found.setdefault(role, []).append(value)
        if name != "--device" and any(len(values) > 1 for values in found.values()):
            raise UsageError(f"{name} is given twice for the same models.")
        return found

    layers = by_role("--gpu-layers", flags.gpu_layers)
    devices = by_role("--device", flags.device)
    splits = by_role("--tensor-split", flags.tensor_split)
    found = {}
    for role in ("", *bundle.models):
        if role and not any(role in each for each in (layers, devices, splits)):
            continue
        names = tuple(",".join(devices.get(role, devices.get("", []))).split(","))
        number = layers.get(role, layers.get("", ["auto"]))[0]
        split = splits.get(role, splits.get("", []))
        if names == (CPU,) and role in devices:  # stronger than what holds for all
            number = number if role in layers else "auto"
            split = splits.get(role, [])
        if not (number in ("auto", "all") or (number.isascii() and number.isdecimal())):
            raise UsageError("--gpu-layers takes a number, auto or all.")
        wrong = "--tensor-split takes numbers, as in 3,1."
        found[role] = Placement(
            gpu_layers=int(number) if number.isdecimal() else cast("GpuLayers", number),
            devices=names if names != ("",) else (),
            tensor_split=_numbers(split[0], wrong) if split else (),
        )
    return found


def generate_options(
    bundle: Bundle, flags: SampleFlags, top: int = 0, method: Method | None = None
) -> GenerateOptions:
    """The options of an answer: flags first, then the bundle's defaults, then the program's.

    `top` candidates of each model are reported for each token. `method` overrides the flags.

    Raises:
        UsageError: a value has no meaning, or the site forbids it.
    """
    said, ours, combine = bundle.defaults, GenerateOptions(), CombineOptions()
    method = method or getattr(flags, "method", None)
    single = Method.TARGET if len(bundle.models) == 1 else None
    chosen = Method(method or single or said.method or Method.CAPT)
    alphas: tuple[float, ...] = ()
    if flags.alpha not in (None, "evidence"):
        alphas = _numbers(flags.alpha, "--alpha takes a number, one for each pair, or 'evidence'.")
    elif flags.alpha is None and flags.weights is None:
        # Of a method that uses the first pair: its own.
        alphas = said.alphas if chosen.roles is None else said.alphas[:1]
    made = GenerateOptions(
        method=chosen,
        max_tokens=_first(flags.max_tokens, said.max_tokens, ours.max_tokens),
        stop=tuple(checked(text, "--stop") for text in flags.stop or ()),
        top=top,
        combine=CombineOptions(
            alphas=alphas,
            powers=_numbers(flags.weights, "--weights takes numbers, as in 0.5,1,0.5."),
            plausibility=_first(flags.plausibility, said.plausibility, combine.plausibility),
        ),
        sample=SampleOptions(
            temperature=_first(flags.temp, said.temperature, 0.0),
            top_k=flags.top_k,
            top_p=flags.top_p,
            min_p=flags.min_p,
            repeat_penalty=flags.repeat_penalty,
            repeat_window=flags.repeat_last_n,
            seed=flags.seed,
        ),
        repetition_stop=not flags.no_repetition_stop,
    )
    if isinstance(flags, AskFlags):
        made = dataclasses.replace(
            made,
            structure=flags.structure(),
            expert_in_thoughts=flags.expert_in_thoughts == "on",
            speed=getattr(flags, "speed", made.speed),
        )
    read_site().limits.check_weights((*made.combine.alphas, *made.combine.powers))
    return made


def unusual_settings(options: GenerateOptions) -> list[str]:
    """Warnings about settings outside the usual range, at most one; empty if there are none."""
    combine, sample = options.combine, options.sample
    if any(not 0 <= alpha <= 2 for alpha in combine.alphas):
        return ["an alpha from 0 to 1 is usual; above 2, or below 0, answers fall apart."]
    if any(abs(power) > 2 for power in combine.powers):
        return ["weights from 0 to 1 are usual; above 2 answers fall apart."]
    if combine.plausibility > 0.5:
        return ["a plausibility from 1e-6 to 0.1 is usual; now the target alone decides."]
    if sample.temperature > 2:
        return ["a temp from 0 to 1 is usual; above 2 words are drawn nearly at random."]
    if not 0.8 <= sample.repeat_penalty <= 1.5:
        return ["a repeat-penalty from 1 to 1.3 is usual."]
    return []


def pinned_date(flags: ModelFlags) -> datetime.date | None:
    """The date for chat templates, if one was given. Raises UsageError: it is not a date."""
    try:
        return None if flags.date is None else datetime.date.fromisoformat(flags.date)
    except ValueError:
        raise UsageError("--date takes a date as YYYY-MM-DD.") from None


def open_session(
    bundle: Bundle,
    flags: ModelFlags,
    screen: Screen,
    interrupt: Interrupt,
    *,
    wanted: Method | None = Method.CAPT,
    template: str | None = None,
    scores: bool = False,
) -> Session:
    """Loads the models that the method needs, with a progress line, and shows the notices.

    With `scores`, more rows of logits are read at a time: known text is scored so many at once.

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
            check=flags.verify,
            date=date,
            template=template,
            roles=wanted.roles if wanted is not None else None,
        )
    finally:  # an error stands on a line of its own
        screen.clear_progress()
    session = Session(runtime, screen, interrupt, load, date, time.perf_counter() - started)
    screen.notes(runtime.notices)
    asked, limits = flags.ctx_size, {at: one.context_limit for at, one in runtime.models.items()}
    smallest = min(limits, key=lambda role: limits[role], default="target")
    if asked is not None and limits and (own := limits.get("target", limits[smallest])) != asked:
        told = f"the context holds {own:,} tokens instead of the {asked:,} of --ctx-size."
        screen.notes([told])
    if limits and limits[smallest] < limits.get("target", 0):
        screen.notes([
            f"the context of the {smallest} holds {limits[smallest]:,} tokens, that of the "
            f"target {limits['target']:,}: prompt and answer have to fit into the smaller one."
        ])  # fmt: skip
    for role, model in runtime.models.items():
        about, adapters = model.metadata, runtime.bundle.models[role].adapters
        screen.detail(
            f"{role}: {about.architecture}, {about.file_type}, context {model.context_limit}, "
            f"{about.gpu_layers} layers on the GPU" + "".join(f", {one}" for one in adapters)
        )
    screen.detail(f"loaded in {session.load_seconds:.2f} s")
    return session


def _record(
    session: Session,
    generation: Generation,
    steps: Sequence[Step],
    options: GenerateOptions,
    *,
    raw: bool,
    notices: Sequence[str] = (),
    **more: Any,
) -> Answer:
    """The record of an answer with its provenance; `notices` and `more` are added to it."""
    runtime = session.runtime
    return answer_of(
        generation,
        steps,
        runtime.bundle.id,
        load=session.load_seconds,
        raw=raw,
        notices=(*runtime.notices, *generation.notices, *notices),
        provenance=provenance(runtime, options, session.load, session.date, generation.text_bytes),
        created=int(time.time()),
        id=new_id(),
        **more,
    )


def best_answer_to(
    session: Session,
    asked: str | Sequence[Message],
    options: GenerateOptions,
    flags: BestOfFlags,
    *,
    check: Check,
    raw: bool = False,
    unsupported: Unsupported | None = None,
) -> Answer:
    """The best of several answers; see `rerank.best_of`."""
    from capt_local.rerank import best_of, open_scorer

    runtime = session.runtime
    with open_scorer(flags.scorer, runtime.bundle, check) or contextlib.nullcontext() as scorer:
        found = best_of(
            runtime, asked, options, flags.best_of, scorer, raw=raw, cancel=session.interrupt,
            unsupported=unsupported,
        )  # fmt: skip
    best = found.candidates[0]
    return _record(
        session,
        best.generation,
        best.steps,
        options.with_seed(best.seed),
        raw=raw,
        notices=found.notices,
        best_of=found.as_object(),
    )


def answer_to(
    session: Session,
    asked: str | Sequence[Message],
    options: GenerateOptions,
    *,
    raw: bool = False,
    show: Writer | None = None,
    think: Writer | None = None,
    keep: Callable[[Answer], None] | None = None,
) -> Answer:
    """Runs one generation to its end; raises what `Runtime.generate` does.

    `show` receives the bytes of the answer as they come, `think` those of the reasoning, `keep`
    the partial answer if an error ends it.
    """
    generation = session.runtime.generate(asked, options, raw=raw, cancel=session.interrupt)
    steps: list[Step] = []
    try:
        for step in generation:
            steps.append(step)
            writer = think if step.thought else show
            if writer is not None:
                writer(step.piece_bytes)
    except Exception:
        if keep is not None and not all(step.thought for step in steps):
            failed = FinishReason.ERROR
            keep(_record(session, generation, steps, options, raw=raw, finish=failed))
        raise
    # An interrupted answer may end in held-back bytes that no step has shown.
    shown = sum(len(step.piece_bytes) for step in steps if not step.thought)
    if show is not None and len(generation.text_bytes) > shown:
        show(generation.text_bytes[shown:])
    return _record(session, generation, steps, options, raw=raw)


def answer_with_progress(
    session: Session,
    label: str,
    asked: str | Sequence[Message],
    options: GenerateOptions,
    *,
    raw: bool = False,
) -> Answer:
    """The same, with a progress line while it is made."""
    screen, done = session.screen, 0

    def show(_: bytes) -> None:
        nonlocal done
        done += 1
        screen.progress(label, done / options.max_tokens)

    screen.progress(label, 0.0)
    try:
        return answer_to(session, asked, options, raw=raw, show=show)
    finally:
        screen.clear_progress()


def _numbers(text: str | None, wrong: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(wrong) from None


def _first(*values: _Value | None) -> _Value:
    """The first value that was given."""
    return next(value for value in values if value is not None)
