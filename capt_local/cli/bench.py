"""`capt-local bench`: the target alone and the three together, side by side in one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.demo import visit
from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags, option
from capt_local.cli.session import find_bundle, generate_options, open_session
from capt_local.errors import UsageError
from capt_local.evaluate.speed import MODES
from capt_local.evaluate.speed import bench as run_modes
from capt_local.evaluate.texts import read_texts
from capt_local.report.json import dumps
from capt_local.report.screen import Screen

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
    what: BenchFlags, model: ModelFlags, how: MethodFlags, sample: SampleFlags, view: ViewFlags
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
        prompts = [text.data.decode() for text in read_texts(what.prompts, limit=what.limit)]
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
        session = open_session(bundle, model, screen, interrupt, wanted=options.method)
        with session.runtime:

            def told(part: float) -> None:
                interrupt.check()
                screen.progress("measuring", part)

            modes = run_modes(session.runtime, prompts, wanted, raw=what.raw, progress=told)
    screen.clear_progress()
    found = {name: mode.as_object() for name, mode in modes.items() if mode.tokens}
    if not found:
        raise UsageError("Every answer ended with its first token: nothing to measure.")
    ratios = _ratios(found)
    if what.json:
        screen.line(dumps({"modes": found, "ratios": ratios}))
        return ExitCode.OK
    for line in _lines(found, ratios):
        screen.line(line)
    return ExitCode.OK


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


def _lines(found: dict[str, dict[str, object]], ratios: dict[str, float]) -> list[str]:
    lines = [f"{'mode':<12} {'prompt t/s':>11} {'answer t/s':>11} {'outside llama.cpp':>20}"]
    for name, mode in found.items():
        lines.append(
            f"{name:<12} {mode['prefill_tokens_per_s']:>11.1f} "
            f"{mode['generate_tokens_per_s']:>11.1f} "
            f"{mode['outside_decode_ms_per_token']:>9.2f} ms {mode['outside_decode_share']:>7.1%}"
        )
    return lines + [f"{name} answer speed: {ratio:.2f}" for name, ratio in ratios.items()]
