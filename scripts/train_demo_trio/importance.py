"""How strongly each column of each matrix is used: llama.cpp's importance matrix.

For a matrix W that multiplies x it is the mean of x squared over running text, by column. Rounding
errors in columns that are multiplied with large numbers count more, so the quantizer spends its
bits there. The text is that which the stage was trained on, 64 rows of one context.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from scripts.train_demo_trio import model as models
from scripts.train_demo_trio.batches import Packer
from scripts.train_demo_trio.model import Llama
from scripts.train_demo_trio.stages import STAGES
from scripts.train_demo_trio.tokens import read_streams
from scripts.train_demo_trio.train import checkpoint, load_model

_ROWS = 64


class Meter:
    """Sums the squares of what every matrix is multiplied with."""

    def __init__(self, model: Llama) -> None:
        """Knows the matrices by the memory that they lie in."""
        self.names = {p.data_ptr(): f"{n}.weight" for n, p in model.named_parameters()}
        self.really = models.linear
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Stands in for `model.linear`."""
        name, flat = self.names[weight.data_ptr()], x.float().flatten(0, -2)
        squares = flat.square().sum(0)
        self.sums[name] = self.sums[name] + squares if name in self.sums else squares
        self.counts[name] += len(flat)
        return self.really(x, weight)

    def means(self) -> dict[str, np.ndarray]:
        """By the matrix' name in the GGUF."""
        return {name: (s / self.counts[name]).numpy() for name, s in self.sums.items()}


@torch.no_grad()
def measure(work: Path, stages: Mapping[str, str], out: Path) -> None:
    """Write OUT/ROLE.npz for the three roles."""
    out.mkdir(parents=True, exist_ok=True)
    for role, name in stages.items():
        stage = STAGES[name]
        model = load_model(checkpoint(work, name), torch.float32)
        streams = read_streams(work, stage.role, tuple(stage.epochs))
        packer = Packer(streams, stage.epochs, model.shape.context, seed=0)
        meter = Meter(model)
        with patch.object(models, "linear", meter.linear):
            for _ in range(_ROWS):
                model(torch.from_numpy(packer.rows(1)[0][:, :-1]))
        np.savez(out / f"{role}.npz", **meter.means())
