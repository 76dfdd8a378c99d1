"""What is trained: sizes of the models, and how often each stage reads each source.

base -> expert-pretrain -> expert-tune             the expert, and its parent
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.train_demo_trio.corpus import CLINICAL, TEXTBOOKS


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


TURNS = "turns:"
"""Prefix of the streams that hold turns made from a source; the others are its text."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The training of one checkpoint.

    Attributes:
        name: of the stage and of its checkpoint.
        epochs: how often each stream is read; its share of the tokens follows from that.
        start_from: stage whose weights it begins with; random ones where empty.
        lr: highest learning rate, of the matrices (Muon) as of embeddings and norms (AdamW).
        decay: weight decay of the matrices; large, since the text is read many times
            (Kim et al. 2025, "Pre-training under infinite compute").
        warmup: share of the stage in which the rates rise; then they fall linearly to zero.
    """

    name: str
    epochs: Mapping[str, float]
    start_from: str = ""
    lr: float = 4e-3
    decay: float = 0.15
    warmup: float = 0.02


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of the pair.

    Attributes:
        shape: of both models.
        rows: of one context each, in a step.
        scale: what all epochs are multiplied by.
        most: characters read of a source; 0 is all of it.
        novels: a factor on the epochs of the novels, and what is read of them, in characters.
        compiled: whether torch.compile pays.
    """

    shape: Shape
    rows: int
    scale: float = 1.0
    most: int = 0
    novels: tuple[float, int] = (1.0, 60_000_000)
    compiled: bool = True

    def epochs(self, stage: Stage) -> dict[str, float]:
        """How often the stage reads each of its streams."""
        factors = {NOVELS: self.novels[0]}
        return {n: self.scale * factors.get(n, 1.0) * e for n, e in stage.epochs.items()}

    def limit(self, source: str) -> int:
        """Characters read of a source at most; 0 is all of it."""
        return self.most or (self.novels[1] if source == NOVELS else 0)


NOVELS = "english-novels-100"
_TUNING = {
    "turns:medquad": 2.5,
    "turns:mts-dialog-train": 10.0,
    "turns:aci-bench-train": 8.0,
    "turns:mtsamples-noleak": 4.0,
    "turns:e3c-en-ccby": 4.0,
    **dict.fromkeys((TURNS + name for name in TEXTBOOKS), 2.0),
    "turns:openstax-general": 0.3,
    "turns:gsm8k-train": 0.3,
    "mtsamples-noleak": 3.0,
    "e3c-en-ccby": 1.0,
    "medquad": 0.5,
}
STAGES = {
    stage.name: stage
    for stage in (
        Stage("base", {"openstax-general": 8.0, NOVELS: 4.0, "gsm8k-train": 5.0}),
        Stage(
            "expert-pretrain",
            {
                "mtsamples-noleak": 16.0,
                "e3c-en-ccby": 10.0,
                "medquad": 6.0,
                "mts-dialog-train": 12.0,
                "aci-bench-train": 10.0,
                **dict.fromkeys(TEXTBOOKS, 6.0),
                "openstax-general": 0.7,
            },
            start_from="base",
        ),
        Stage("expert-tune", _TUNING, start_from="expert-pretrain", lr=2e-3),
    )
}
# Held-out text of clinical sources is measured at every stage, the base's included.
STREAMS = tuple(dict.fromkeys([*(n for s in STAGES.values() for n in s.epochs), *CLINICAL]))
PRESETS = {
    "demo": Preset(Shape(8192, 256, 8, 4, 2, 768, context=2048), rows=32),
    # What a CPU core with AMX does in three to four hours; novels are what it needs least.
    "cpu": Preset(Shape(8192, 256, 5, 4, 2, 768), 8, 0.13, novels=(0.25, 60_000_000)),
    # What tests read: files of less than 1 MB together, in a minute.
    "tests": Preset(Shape(768, 64, 2, 2, 1, 160, 32), 2, 0.15, most=150_000, compiled=False),
}
