"""The modes of `capt-local bench`: which there are, and making them on loaded models."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from capt_local.bundle.manifest import Bundle
from capt_local.cli.session import Session
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.engine.plain import PlainLlama
from capt_local.errors import MemoryShortage, UsageError
from capt_local.evaluate.speed.modes import PlainMode, RuntimeMode
from capt_local.evaluate.speed.result import ALONE, PLAIN
from capt_local.evaluate.speed.taken import Mode


def chosen_modes(
    names: str | None, bundle: Bundle, options: GenerateOptions
) -> dict[str, GenerateOptions]:
    """The modes that were asked for, or all that the bundle can do.

    Raises:
        UsageError: a mode is unknown or comes twice, or needs models that are not there.
    """
    steps = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
    known = {ALONE: dataclasses.replace(steps, method=Method.TARGET)}
    if "expert" in bundle.models:
        together = dataclasses.replace(options, method=Method.CAPT)
        order = sorted(Speed, key=lambda speed: speed is not Speed.EXACT_STEPS)
        known |= {str(speed): dataclasses.replace(together, speed=speed) for speed in order}
    if not options.sample.temperature:  # the binding draws in its own way
        known[PLAIN] = known[ALONE]
    if names is None:
        return known
    found: dict[str, GenerateOptions] = {}
    for number, name in enumerate(names.split(","), 1):
        if name.strip() not in known:
            raise UsageError(
                f"Number {number} of --modes is none of this run; there are {', '.join(known)}."
            )
        if name.strip() in found:
            raise UsageError(f"--modes names {name.strip()} twice.")
        found[name.strip()] = known[name.strip()]
    return found


def needed(wanted: Mapping[str, GenerateOptions]) -> Method:
    """The method whose models serve all modes."""
    alone = all(each.method is Method.TARGET for each in wanted.values())
    return Method.TARGET if alone else Method.CAPT


def open_modes(
    session: Session,
    wanted: Mapping[str, GenerateOptions],
    stack: contextlib.ExitStack,
    ours: Callable[[GenerateOptions], Mode] | None = None,
) -> dict[str, Mode]:
    """Modes that can answer.

    Args:
        session: with the models.
        wanted: how, by name.
        stack: closes what is opened here.
        ours: makes those of our own runtime, if not as usual.

    Raises:
        MemoryShortage: the binding's own `Llama` alone is wanted, and does not fit.
    """
    runtime, cancel = session.runtime, session.interrupt
    modes: dict[str, Mode] = {}
    for name, options in wanted.items():
        if name != PLAIN:
            modes[name] = ours(options) if ours else RuntimeMode(runtime, options, cancel)
        elif (plain := _plain(session, stack, only=len(wanted) == 1)) is not None:
            modes[name] = PlainMode(plain, runtime, options, cancel)
    return modes


def _plain(session: Session, stack: contextlib.ExitStack, *, only: bool) -> PlainLlama | None:
    """The target once more in the binding's own class; None, and said, where it does not fit."""
    runtime = session.runtime
    path = runtime.bundle.models["target"].path
    try:
        return stack.enter_context(PlainLlama(path, runtime.models["target"], session.load))
    except MemoryShortage as error:
        if only:
            raise
        session.screen.note(f"note: {PLAIN} is left out. {error}")
        return None
