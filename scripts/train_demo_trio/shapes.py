"""Sizes of a model, apart from torch, so that a plan can be reckoned without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model; every width is a multiple of 32 so that Q8_0 blocks fit.

    K-quants (Q6_K, Q4_K) need `width`, `hidden` and `heads * head_dim` to be multiples of 256.
    `heads * head_dim` may be less than `width`: attention is what a CPU is slowest at.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int = 64
    context: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that the export could not hold."""
        if self.heads % self.kv_heads:
            raise ValueError("kv_heads must divide heads")
        if any(n % 32 for n in (self.vocab, self.width, self.hidden, self.head_dim)):
            raise ValueError("vocab, width, hidden and head_dim must be multiples of 32")

    def to_dict(self) -> dict[str, float]:
        """The fields, for a checkpoint."""
        return asdict(self)

    @property
    def matrix_parameters(self) -> int:
        """Weights of the layers' matrices (norms left out)."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def parameters(self) -> int:
        """All weights; the output head is the embedding."""
        norms = self.width * (2 * self.layers + 1)
        return self.vocab * self.width + self.matrix_parameters + norms

    @property
    def flops_a_token(self) -> float:
        """Operations of a training step for one token.

        6 for each weight that is multiplied with (2 forwards, 4 backwards; Kaplan et al. 2020),
        the head included, and causal attention over half of the context.
        """
        attention = 6 * self.layers * self.context * self.heads * self.head_dim
        return 6.0 * (self.vocab * self.width + self.matrix_parameters) + attention
