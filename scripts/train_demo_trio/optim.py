"""Muon for the hidden matrices, AdamW for the embedding and the norms.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest orthogonal matrix, found
with five Newton-Schulz steps. Matrices of one shape are handled as one batch, which keeps the
overhead small on a single CPU core.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Newton-Schulz quintic iteration on a batch of matrices [n, rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the step has the RMS of an AdamW step (0.2)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, decay: float = 0.05) -> None:
        """`lr` is on AdamW's scale (Liu et al. 2025)."""
        super().__init__(params, {"lr": lr, "momentum": 0.95, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for batch in shapes.values():
                self._update(batch, group)

    def _update(self, batch: list[nn.Parameter], group: dict[str, Any]) -> None:
        for p in batch:
            if "m" not in self.state[p]:
                self.state[p]["m"] = torch.zeros_like(p)
        # All matrices of a shape in one call each: on a GPU the calls cost more than the sums.
        grads = [p.grad for p in batch]
        means = [self.state[p]["m"] for p in batch]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        look = torch.stack(torch._foreach_lerp(grads, means, group["momentum"]))
        steps = orthogonal(look, torch.bfloat16).unbind(0)
        scale = 0.2 * max(batch[0].shape) ** 0.5
        torch._foreach_mul_(batch, 1 - group["lr"] * group["decay"])
        torch._foreach_add_(batch, steps, alpha=-group["lr"] * scale)


def make_optimizers(
    model: nn.Module, lr: float, embed_lr: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon on 2-D weights of the blocks, AdamW on the rest; `decay` is that of the matrices."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.ndim == 2 and "token_embd" not in n]
    rest = [p for n, p in named if not (p.ndim == 2 and "token_embd" not in n)]
    adam = torch.optim.AdamW(rest, lr=embed_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return [Muon(hidden, lr, decay), adam]
