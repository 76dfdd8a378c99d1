"""The measurement of a batch run runs, and its parts add up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_it_measures_a_small_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.measure_batch_run", "--records", "40", "--bytes", "200",
         "--folder", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    found = re.match(
        r"40 records: ([\d.]+) ms each, ([\d.]+) ms of it in the journal .*, ([\d.]+) ms the rest",
        done.stdout,
    )
    assert found is not None
    whole, kept, rest = (float(each) for each in found.groups())
    assert kept > 0 and rest > 0
    assert abs(whole - kept - rest) < 0.05
