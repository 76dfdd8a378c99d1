"""What one step frees is at hand for the next. Each time in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Arrays as those of a step, made and let go; counts how many pages the kernel had to bring.
STEPS = """
import resource, sys
import numpy as np
from capt_local.engine.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def step():
    return [np.ones(size, np.float32) for size in (152_000, 32_000, 32_000, *[70_000] * 12)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 50)
"""


def steps(how: str, **environment: str) -> tuple[str, float]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how],
        capture_output=True, text=True, check=True, env=clean | environment,
    )  # fmt: skip
    said, pages = done.stdout.split()
    return said, float(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_do_not_come_and_go_with_every_step() -> None:
    _, without = steps("leave")
    said, pages = steps("keep")
    assert said == "True"
    assert pages < 20 < 200 < without


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "1000"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}]
)
def test_what_somebody_has_set_stays(setting: dict[str, str]) -> None:
    said, _ = steps("keep", **setting)
    assert said == "False"
