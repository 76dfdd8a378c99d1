"""The script that measures the check of a batch input, on a small one."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from capt_local.batch.checking import check_input
from capt_local.batch.inputs import InputFormat
from scripts.measure_batch_input import main, write


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("more", [[], ["--template"]])
def test_it_measures(form: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--lines", "3000", "--bytes", "400", "--format", form, *more])
    found = re.search(
        r"3000 records, 1 MiB: checked in ([0-9.]+) s \(.*\), at most ([0-9]+) MiB; read again in "
        r"([0-9]+) us each",
        capsys.readouterr().out,
    )
    assert found and float(found[1]) < 10 and float(found[3]) < 10_000


def test_what_is_kept_of_a_checked_input_is_small(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write(path, InputFormat.JSONL, 5_000, 2_000)
    tracemalloc.start()
    source = check_input(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 5_000
    # 10 MB of text went through; 300 bytes are kept of each record.
    assert kept < 1_500_000 and most < 2_500_000
