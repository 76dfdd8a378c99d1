"""Output head and cross-entropy together, without the logits of a whole step in memory.

For 8,192 tokens and a vocabulary of 16,384 these are half a gigabyte, which a CPU would read and
write ten times over. Here a few rows at a time give loss and gradient and are forgotten (the idea
of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ROWS = 1024

Part = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def part(x: Tensor, head: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of some rows and its gradients by the rows and by the head.

    Args:
        x: hidden states [rows, width].
        head: [vocab, width], of the same type.
        targets: the next tokens [rows].
        shares: what each row counts [rows].
    """
    logits = (x @ head.T).float()
    whole = logits.logsumexp(-1, keepdim=True)
    found = logits.gather(-1, targets[:, None])
    wrong = (logits - whole).exp()
    here = torch.arange(head.shape[0], device=x.device) == targets[:, None]
    wrong = ((wrong - here.float()) * shares[:, None]).to(x.dtype)
    return ((whole - found)[:, 0] * shares).sum(), wrong @ head, wrong.T @ x


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, work: Part
    ) -> Tensor:
        head = weight.to(x.dtype)
        by_x, by_weight = torch.empty_like(x), torch.zeros_like(weight)
        loss = torch.zeros((), device=x.device)
        for first in range(0, len(x), _ROWS):
            rows = slice(first, first + _ROWS)
            lost, by_x[rows], by_head = work(x[rows], head, targets[rows], shares[rows])
            loss += lost
            by_weight += by_head
        ctx.save_for_backward(by_x, by_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_weight = ctx.saved_tensors
        return by_x * given[0], by_weight * given[0], None, None, None


def head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, work: Part = part
) -> Tensor:
    """The mean cross-entropy in nats.

    Args:
        x: hidden states [batch, time, width].
        weight: the head [vocab, width].
        targets: [batch, time].
        weights: of each token in the mean [batch, time].
        work: `part`, compiled or not.
    """
    shares = (weights / weights.sum()).flatten()
    loss: Tensor = _HeadLoss.apply(x.flatten(0, 1), weight, targets.flatten(), shares, work)
    return loss
