"""What is trained: sizes of the models, and how often each stage reads each source.

Stages are kept apart so that what pretraining gives and what tuning gives can be measured, as in
the ablations of the paper:

    target-pretrain -> target-tune                     the target
    base -> expert-pretrain -> expert-tune             the expert, and its parent
            expert-pretrain -> expert-neft             the same tuning with NEFTune's noise
    base -> base-tune                                  the parent with general turns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scripts.train_demo_trio.corpus import CLINICAL, TEXTBOOKS
from scripts.train_demo_trio.shapes import Shape

TURNS = "turns:"
"""Prefix of the streams that hold turns made from a source; the others are its text."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The training of one checkpoint.

    Attributes:
        name: of the stage and of its checkpoint.
        role: "target" or "proxy": which shape and which vocabulary.
        epochs: how often each stream is read; its share of the tokens follows from that.
        start_from: stage whose weights it begins with; random ones where empty.
        lr: highest learning rate of the matrices (Muon).
        embed_lr: the same of embeddings and norms (AdamW).
        decay: weight decay of the matrices; large, since the text is read many times
            (Kim et al. 2025, "Pre-training under infinite compute").
        warmup: share of the stage in which the rates rise; then they fall linearly to zero.
        noise: NEFTune's alpha; 0 is without.
    """

    name: str
    role: str
    epochs: Mapping[str, float]
    start_from: str = ""
    lr: float = 4e-3
    embed_lr: float = 4e-3
    decay: float = 0.15
    warmup: float = 0.02
    noise: float = 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that its streams are made from."""
        return tuple(dict.fromkeys(name.removeprefix(TURNS) for name in self.epochs))


@dataclass(frozen=True, slots=True)
class Preset:
    """A trio.

    Attributes:
        name: as the command line has it.
        shapes: of "target" and "proxy".
        rows: of one context each, in a step.
        scale: what all epochs are multiplied by.
        most: characters read of a source; 0 is all of it.
        characters: the same for some sources.
        times: a factor on the epochs of some sources, their turns not included: where little is
            read, more of it should be the text that pays most.
        compiled: whether torch.compile pays.
    """

    name: str
    shapes: Mapping[str, Shape]
    rows: int
    scale: float = 1.0
    most: int = 0
    characters: Mapping[str, int] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    compiled: bool = True

    def epochs(self, stage: Stage) -> dict[str, float]:
        """How often the stage reads each of its streams."""
        return {n: self.scale * self.times.get(n, 1.0) * e for n, e in stage.epochs.items()}


def _all(names: tuple[str, ...], epochs: float) -> dict[str, float]:
    return dict.fromkeys(names, epochs)


_BOOK_TURNS = tuple(TURNS + name for name in TEXTBOOKS)
_TUNE = {"lr": 2e-3, "embed_lr": 2e-3}
_EXPERT_TUNING = {
    "turns:medquad": 2.5,
    "turns:mts-dialog-train": 10.0,
    "turns:aci-bench-train": 8.0,
    "turns:mtsamples-noleak": 4.0,
    "turns:e3c-en-ccby": 4.0,
    **_all(_BOOK_TURNS, 2.0),
    "turns:openstax-general": 0.3,
    "turns:gsm8k-train": 0.3,
    "mtsamples-noleak": 3.0,
    "e3c-en-ccby": 1.0,
    "medquad": 0.5,
}

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "target-pretrain",
            "target",
            {
                "openstax-general": 8.0,
                "english-novels-100": 3.0,
                "gsm8k-train": 5.0,
                **_all(TEXTBOOKS, 8.0),
            },
        ),
        Stage(
            "target-tune",
            "target",
            {
                "turns:openstax-general": 3.0,
                "turns:gsm8k-train": 5.0,
                **_all(_BOOK_TURNS, 4.0),
                "openstax-general": 1.0,
                **_all(TEXTBOOKS, 1.5),
            },
            start_from="target-pretrain",
            **_TUNE,
        ),
        Stage(
            "base",
            "proxy",
            {"openstax-general": 8.0, "english-novels-100": 4.0, "gsm8k-train": 5.0},
        ),
        Stage(
            "expert-pretrain",
            "proxy",
            {
                "mtsamples-noleak": 16.0,
                "e3c-en-ccby": 10.0,
                "medquad": 6.0,
                "mts-dialog-train": 12.0,
                "aci-bench-train": 10.0,
                **_all(TEXTBOOKS, 6.0),
                "openstax-general": 0.7,
            },
            start_from="base",
        ),
        Stage("expert-tune", "proxy", _EXPERT_TUNING, start_from="expert-pretrain", **_TUNE),
        Stage(
            "expert-neft",
            "proxy",
            _EXPERT_TUNING,
            start_from="expert-pretrain",
            noise=5.0,
            **_TUNE,
        ),
        Stage(
            "base-tune",
            "proxy",
            {"turns:openstax-general": 2.0, "turns:gsm8k-train": 3.0, "openstax-general": 0.5},
            start_from="base",
            **_TUNE,
        ),
    )
}
LANES = (
    ("target-pretrain", "target-tune"),
    ("base", "expert-pretrain", "expert-tune", "expert-neft", "base-tune"),
)
"""Stages that follow each other; lanes run beside each other."""

STREAMS = {
    role: tuple(
        dict.fromkeys(n for s in STAGES.values() if s.role == role for n in s.epochs)
        # Held-out text of these is measured with every proxy, the base included.
        | dict.fromkeys(CLINICAL if role == "proxy" else ())
    )
    for role in ("target", "proxy")
}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "demo",
            {
                "target": Shape(16384, 512, 7, 8, 2, 1536, context=2048),
                "proxy": Shape(8192, 256, 8, 4, 2, 768, context=2048),
            },
            rows=32,
            # So that the pack stays below 36 MiB; novels are what these models need least.
            characters={"english-novels-100": 60_000_000},
        ),
        # What two CPU cores with AMX do in three to four hours.
        Preset(
            "cpu",
            {
                "target": Shape(16384, 384, 5, 4, 2, 1024),
                "proxy": Shape(8192, 256, 5, 4, 2, 768),
            },
            rows=8,
            scale=0.13,
            characters={"english-novels-100": 60_000_000},
            times={"english-novels-100": 0.25, **_all(TEXTBOOKS, 1.5)},
        ),
        # What tests read: three files of less than 1 MB together, in a minute.
        Preset(
            "tests",
            {
                "target": Shape(1024, 64, 2, 2, 1, 160, 32),
                "proxy": Shape(768, 64, 2, 2, 1, 160, 32),
            },
            rows=2,
            scale=0.15,
            most=150_000,
            compiled=False,
        ),
    )
}
