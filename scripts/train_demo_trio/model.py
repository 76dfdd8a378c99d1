"""A Llama-architecture language model, laid out as llama.cpp's `llama` architecture reads it.

RoPE rotates neighbouring pairs (the "norm" convention of llama.cpp), so that query and key
matrices go into a GGUF without a permutation. The output head is the token embedding. Weights are
float32; matrix products run in `dtype` (bfloat16 uses AMX or tensor cores).

Hidden matrices are trained by Muon (Jordan et al. 2024), embedding and norms by AdamW.
"""

from __future__ import annotations

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
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Matrix product in the type of x; the float32 weight is cast on the fly."""
    return F.linear(x, weight.to(x.dtype))


def matrix(rows: int, cols: int, scale: float = 1.0) -> nn.Parameter:
    """A weight [rows, cols] with variance scale^2 / cols."""
    return nn.Parameter(torch.randn(rows, cols) * (scale * cols**-0.5))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU; parameter names are llama.cpp's."""

    def __init__(self, shape: Shape) -> None:
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
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + linear(a.transpose(1, 2).reshape(n, t, -1), self.attn_output)
        h = rms_norm(x, self.ffn_norm, s.norm_eps)
        gated = F.silu(linear(h, self.ffn_gate)) * linear(h, self.ffn_up)
        return x + linear(gated, self.ffn_down)


class Llama(nn.Module):
    """Token ids to the next token's logits or loss; `dtype` is that of the matrix products."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
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


def make_optimizers(model: nn.Module, lr: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon on 2-D weights of the blocks, AdamW on the rest; `decay` is that of the matrices.

    A step of Muon has the RMS of one of AdamW (Liu et al. 2025), so `lr` is on the scale of both.
    """
    hidden, rest = [], []
    for name, weights in model.named_parameters():
        (hidden if weights.ndim == 2 and "token_embd" not in name else rest).append(weights)
    muon = torch.optim.Muon(hidden, lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return [muon, adam]
