"""`capt-local bench`: the target alone and the three together, side by side in one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.demo import visit
from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.model_flags import ModelFlags
from capt_local.cli.options import SampleFlags, SideBySideFlags, ViewFlags, option
from capt_local.cli.session import Session, find_bundle, generate_options, open_session
from capt_local.decode.options import GenerateOptions
from capt_local.errors import UsageError
from capt_local.evaluate.reading.texts import read_texts
from capt_local.evaluate.speed import MODES, memory_over
from capt_local.evaluate.speed import bench as run_modes
from capt_local.report.json import dumps
from capt_local.report.screen import Screen
from capt_local.report.view import Table

_TOKENS = 64


@dataclass(frozen=True, slots=True)
class BenchFlags:
    """What is measured on, and how it is told."""

    prompts: Annotated[
        Path | None,
        option(
            "--prompts", metavar="FILE", help='JSON Lines with a "text" each. Default: a visit.'
        ),
    ] = None
    limit: Annotated[
        int | None, option("--limit", metavar="N", min=1, help="Only the first N prompts.")
    ] = None
    raw: Annotated[
        bool, option("--raw", help="Go on with the prompts as they are, without a template.")
    ] = False
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False


def bench(
    what: BenchFlags, model: ModelFlags, how: SideBySideFlags, sample: SampleFlags, view: ViewFlags
) -> int:
    """Prompt and answer speed, and the time that is spent outside llama.cpp.

    Modes: target (the target alone) and exact-steps (the three, step by step). They take turns on
    the same prompts, so their ratio holds on a machine whose speed drifts.
    """
    screen = Screen.standard(view.verbose)
    if how.method is not None:
        raise UsageError("bench runs its modes side by side; --method has no place here.")
    prompts = [visit()]
    if what.prompts is not None:
        texts = read_texts(what.prompts, "The file of --prompts", limit=what.limit)
        prompts = [text.data.decode() for text in texts]
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_TOKENS)
    options = generate_options(bundle, how, sample, 0)
    wanted = {
        name: dataclasses.replace(options, method=method)
        for name, method in MODES.items()
        if method == "target" or "expert" in bundle.models
    }
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            found = _measure(session, prompts, wanted, raw=what.raw)
            over = memory_over(session.runtime)
    if not found:
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    ratios = _ratios(found)
    if what.json:
        screen.line(dumps({"modes": found, "ratios": ratios, "memory_over_bytes": over}))
    else:
        screen.show(_table(found))
        for name, ratio in ratios.items():
            screen.line(f"{name} answer speed: {ratio:.2f}")
        screen.line(f"memory over model files and KV caches: {over / 1e6:.0f} MB")
    return ExitCode.OK


def _measure(
    session: Session, prompts: list[str], wanted: dict[str, GenerateOptions], *, raw: bool
) -> dict[str, dict[str, object]]:
    """The figures of each mode that said something, with a progress line meanwhile."""

    def told(part: float) -> None:
        session.interrupt.check()
        session.screen.progress("measuring", part)

    try:
        modes = run_modes(session.runtime, prompts, wanted, raw=raw, progress=told)
    finally:
        session.screen.clear_progress()
    return {name: mode.as_object() for name, mode in modes.items() if mode.tokens}


def _ratios(found: dict[str, dict[str, object]]) -> dict[str, float]:
    """Generation speed of each mode over that of the target alone."""
    rates = {name: mode["generate_tokens_per_s"] for name, mode in found.items()}
    alone = rates.get("target")
    if not isinstance(alone, float):
        return {}
    return {
        f"{name}/target": rate / alone
        for name, rate in rates.items()
        if name != "target" and isinstance(rate, float)
    }


def _table(found: dict[str, dict[str, object]]) -> Table:
    heading = ("mode", "prompt t/s", "answer t/s", "outside llama.cpp", "share")
    rows = tuple(
        (
            name,
            f"{mode['prefill_tokens_per_s']:.1f}",
            f"{mode['generate_tokens_per_s']:.1f}",
            f"{mode['outside_decode_ms_per_token']:.2f} ms/token",
            f"{mode['outside_decode_share']:.1%}",
        )
        for name, mode in found.items()
    )
    return Table("", rows, heading, right=(1, 2, 3, 4))
