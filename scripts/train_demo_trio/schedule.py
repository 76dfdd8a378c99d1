"""Which stage runs when: two lanes of processes beside each other, and what they will cost.

On a CPU each lane has a core of its own. On one GPU the two processes take turns: each computes in
the gaps that the other leaves while it packs rows, updates weights in many small calls or compiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.train_demo_trio.stages import LANES, STAGES, Preset, Stage

# glibc gives large arrays back to the kernel after each use; keeping them, in large pages, makes a
# step on a CPU a quarter faster.
_KEPT_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_WORTH_STARTING = 20.0  # seconds before the end of a call at which no stage is begun any more


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage costs.

    Attributes:
        stage: its name.
        available: tokens of its streams, each once.
        tokens: that it reads.
        flops: operations of all its steps.
    """

    stage: str
    available: int
    tokens: int
    flops: float

    def minutes(self, tflops: float) -> float:
        """At so many 10^12 operations a second."""
        return self.flops / (tflops * 1e12) / 60


def cost(stage: Stage, preset: Preset, counts: Mapping[str, int]) -> Cost:
    """What a stage costs, from the tokens of the streams of its role."""
    tokens = sum(times * counts.get(n, 0) for n, times in preset.epochs(stage).items())
    step = preset.rows * preset.shapes[stage.role].context
    whole = max(1, round(tokens / step)) * step
    available = sum(counts.get(name, 0) for name in stage.epochs)
    return Cost(stage.name, available, whole, whole * preset.shapes[stage.role].flops_a_token)


def costs(preset: Preset, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Cost]:
    """What every stage costs."""
    return {name: cost(s, preset, counts[s.role]) for name, s in STAGES.items()}


def minutes_of(
    wanted: Sequence[str], known: Mapping[str, Cost], minutes: float
) -> dict[str, float]:
    """Shares of a budget: within a lane by operations, so that no stage starves another."""
    shares: dict[str, float] = {}
    for lane in LANES:
        mine = [name for name in lane if name in wanted]
        whole = sum(known[name].flops for name in mine)
        shares |= {name: minutes * known[name].flops / whole for name in mine}
    return shares


def table(preset: Preset, known: Mapping[str, Cost], tflops: float) -> str:
    """The budget, for reading."""
    lines = [
        f"{role}: {shape.parameters / 1e6:.1f} M parameters, "
        f"{shape.flops_a_token / 1e6:.0f} M operations a token"
        for role, shape in preset.shapes.items()
    ]
    lines.append(f"{'stage':16} {'tokens there':>13} {'tokens read':>13} {'PFLOP':>7}  minutes")
    for each in known.values():
        lines.append(
            f"{each.stage:16} {each.available:13,} {each.tokens:13,} "
            f"{each.flops / 1e15:7.1f}  {each.minutes(tflops):.1f}"
        )
    whole = sum(each.minutes(tflops) for each in known.values())
    return "\n".join([*lines, f"together {whole:.1f} minutes at {tflops:.0f} TFLOP/s"])


class Lane(threading.Thread):
    """Runs stages one after the other, each in a process of its own."""

    def __init__(
        self, stages: Sequence[str], work: Path, options: Sequence[str], stop_at: float
    ) -> None:
        """`options` are handed on to `stage`."""
        super().__init__(daemon=True)
        self.stages, self.work, self.options, self.stop_at = stages, work, options, stop_at
        self.failed = ""

    def run(self) -> None:
        """To the end of the lane, a stage that fails, or the end of the time."""
        for name in self.stages:
            if (self.work / f"{name}.done").exists():
                continue
            if time.time() > self.stop_at - _WORTH_STARTING:
                return
            command = [sys.executable, "-m", "scripts.train_demo_trio", "stage", name]
            env = _KEPT_MEMORY | os.environ
            if subprocess.run([*command, *self.options], check=False, env=env).returncode:
                self.failed = name
                return
            if not (self.work / f"{name}.done").exists():
                return


def run_lanes(
    wanted: Sequence[str], work: Path, options: Sequence[str], stop_at: float
) -> list[str]:
    """Train the stages that are wanted and not done; returns those that are still not done."""
    lanes = [
        Lane([name for name in lane if name in wanted], work, options, stop_at) for lane in LANES
    ]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    if failed := [lane.failed for lane in lanes if lane.failed]:
        raise SystemExit(f"a stage failed: {', '.join(failed)}")
    return [name for name in wanted if not (work / f"{name}.done").exists()]
