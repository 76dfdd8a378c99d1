"""Provenance names the models of an answer, also those that were given by their paths."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf


def test_models_given_by_path(run: Run, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb.gguf"))  # no UTF-8
    shutil.move(tiny_gguf(tmp_path / "a.gguf", seed=1), odd)
    flags = ["--target", str(odd), "--method", "target", "-p", "x", "-n", "2", "-t", "1"]
    result = run("generate", *flags, "--json")
    assert result.code == 0, result.err
    target = json.loads(result.out)["provenance"]["models"]["target"]
    assert target["sha256"] == hashlib.sha256(odd.read_bytes()).hexdigest()
    assert (target["verified"], target["quantization"]) == ("no manifest names it", "all F32")
    assert target["file"].startswith("a") and target["file"].endswith("b.gguf")
