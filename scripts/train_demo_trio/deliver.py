"""Weights as float16 in parts of limited size, where files of a machine come back only in parts.

    OUT/STAGE.00, OUT/STAGE.01, ...     one after the other: the file that `numpy.savez` wrote

What comes back can be exported and trained on from, but not resumed: the optimizer stays behind.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.train_demo_trio.train import checkpoint, is_done

_ABOUT = "about"


def deliver(work: Path, out: Path, stages: Sequence[str], largest: int) -> list[Path]:
    """Write the stages' weights, as far as they have come; returns the parts."""
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for stage in stages:
        saved = torch.load(checkpoint(work, stage), map_location="cpu", weights_only=False)
        about = {"shape": saved["shape"], "tokens": saved["tokens"], "done": is_done(work, stage)}
        content = _packed(about, saved["model"])
        for number, first in enumerate(range(0, len(content), largest)):
            path = out / f"{stage}.{number:02}"
            path.write_bytes(content[first : first + largest])
            written.append(path)
    return written


def receive(parts: Path, work: Path) -> list[str]:
    """Make WORK/STAGE.pt of what was delivered; returns the stages."""
    stages = sorted({path.stem for path in parts.glob("*.[0-9][0-9]")})
    for stage in stages:
        content = b"".join(path.read_bytes() for path in sorted(parts.glob(f"{stage}.[0-9][0-9]")))
        with np.load(io.BytesIO(content)) as arrays:
            about: dict[str, Any] = json.loads(str(arrays[_ABOUT]))
            model = {
                name: torch.from_numpy(arrays[name]).float()
                for name in arrays.files
                if name != _ABOUT
            }
        torch.save({**about, "stage": stage, "model": model}, checkpoint(work, stage))
        if about["done"]:
            (work / f"{stage}.done").touch()
    return stages


def _packed(about: dict[str, Any], model: dict[str, torch.Tensor]) -> bytes:
    arrays = {name: tensor.half().numpy() for name, tensor in model.items()}
    held = io.BytesIO()
    np.savez(held, **arrays, **{_ABOUT: np.array(json.dumps(about))})
    return held.getvalue()
