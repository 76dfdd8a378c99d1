"""A Llama-architecture language model, laid out as llama.cpp's `llama` architecture reads it.

RoPE rotates neighbouring pairs (the "norm" convention of llama.cpp), so that query and key
matrices go into a GGUF without a permutation. The output head is the token embedding. Weights are
float32; matrix products run in `dtype` (bfloat16 uses AMX or tensor cores).

Hidden matrices are trained by Muon (Jordan et al. 2024), which replaces a matrix's momentum by its
nearest orthogonal matrix, found with five Newton-Schulz steps; embedding and norms by AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_demo_trio.stages import Shape


def rope_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [context, head_dim / 2]."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angle = torch.outer(torch.arange(shape.context, dtype=torch.float64), shape.rope_base**-half)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [batch, time, heads, head_dim]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[: x.shape[1], None], sin[: x.shape[1], None]
    return torch.stack((a * c - b * s, a * s + b * c), dim=-1).flatten(-2).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm with the statistics in float32."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrix product in the type of x; the float32 weight is cast on the fly."""
    return F.linear(x, weight.to(x.dtype))


def matrix(rows: int, cols: int, scale: float = 1.0) -> nn.Parameter:
    """A weight [rows, cols] with variance scale^2 / cols."""
    return nn.Parameter(torch.randn(rows, cols) * (scale * cols**-0.5))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU; parameter names are llama.cpp's."""

    def __init__(self, shape: Shape) -> None:
        """Make the weights of one layer."""
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        out = 0.5 * shape.layers**-0.5
        self.attn_norm = nn.Parameter(torch.ones(shape.width))
        self.attn_q = matrix(q, shape.width)
        self.attn_k = matrix(kv, shape.width)
        self.attn_v = matrix(kv, shape.width)
        self.attn_output = matrix(shape.width, q, out)
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn_gate = matrix(shape.hidden, shape.width)
        self.ffn_up = matrix(shape.hidden, shape.width)
        self.ffn_down = matrix(shape.width, shape.hidden, out)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Residual stream in, residual stream out: [batch, time, width]."""
        s, (n, t, _) = self.shape, x.shape
        h = rms_norm(x, self.attn_norm, s.norm_eps)
        q = rotate(linear(h, self.attn_q).view(n, t, s.heads, -1), cos, sin).transpose(1, 2)
        k = rotate(linear(h, self.attn_k).view(n, t, s.kv_heads, -1), cos, sin).transpose(1, 2)
        v = linear(h, self.attn_v).view(n, t, s.kv_heads, -1).transpose(1, 2)
        groups = s.heads // s.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(a.transpose(1, 2).reshape(n, t, -1), self.attn_output)
        h = rms_norm(x, self.ffn_norm, s.norm_eps)
        gated = F.silu(linear(h, self.ffn_gate)) * linear(h, self.ffn_up)
        return x + linear(gated, self.ffn_down)


class Llama(nn.Module):
    """Token ids to the next token's logits or loss."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        """Random weights; `dtype` is that of the matrix products."""
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.token_embd = nn.Parameter(torch.randn(shape.vocab, shape.width) * 0.02)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        cos, sin = rope_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normalised last hidden states [batch, time, width]."""
        x = F.embedding(ids, self.token_embd).to(self.dtype)
        for block in self.blk:
            x = block(x, self.cos, self.sin)
        return rms_norm(x, self.output_norm, self.shape.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, time, vocab] in float32."""
        return linear(self.hidden(ids), self.token_embd).float()

    def losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each target: [batch * time]."""
        logits = linear(self.hidden(ids), self.token_embd).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


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


def make_optimizers(model: nn.Module, lr: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon on 2-D weights of the blocks, AdamW on the rest; `decay` is that of the matrices."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.ndim == 2 and "token_embd" not in n]
    rest = [p for n, p in named if not (p.ndim == 2 and "token_embd" not in n)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return [Muon(hidden, lr, decay), adam]
