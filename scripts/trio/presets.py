"""What is trained: sizes, mixtures and budgets of the three models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trio.corpus import CLINICAL, TEXTBOOKS
from trio.model import Shape


@dataclass(frozen=True)
class Phase:
    """A mixture that holds until `until` (share of the budget); shares are of tokens."""

    until: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """The training of one model."""

    shape: Shape
    text: tuple[str, ...]
    """Sources whose documents are read as text."""
    turns: tuple[str, ...]
    """Sources that turns are made from."""
    phases: tuple[Phase, ...]
    tokens: int
    """Upper limit; the time budget usually ends the training first."""
    minutes_share: float
    """Share of the whole time budget (target beside base, then expert)."""
    lr: float = 5e-3
    embed_lr: float = 4e-3
    rows: int = 4
    warmup: float = 0.02
    start_from: str = ""
    characters: Mapping[str, int] = field(default_factory=dict)
    """Characters read of a source, where this model needs fewer than its preset says."""


@dataclass(frozen=True)
class Preset:
    """A trio."""

    plans: Mapping[str, Plan]
    characters: Mapping[str, int] = field(default_factory=dict)
    """Characters read of a source; all of it where it is not named."""


def _equal(names: tuple[str, ...], total: float, big: Mapping[str, float]) -> dict[str, float]:
    """Spread `total` over sources by the weights in `big` (1 where not named)."""
    weight = {n: big.get(n, 1.0) for n in names}
    return {n: total * w / sum(weight.values()) for n, w in weight.items()}


_GENERAL = {"openstax-general": 6.0, "english-novels-100": 3.0, "gsm8k-train": 0.5}
_BOOKS = {
    "openstax-nursing-bundle": 2.0,
    "openstax-anatomy-physiology": 1.0,
    "openstax-microbiology": 1.0,
}
_CLINICAL = {
    "mtsamples-noleak": 6.0,
    "e3c-en-ccby": 3.0,
    "medquad": 3.0,
    "mts-dialog-train": 0.6,
    "aci-bench-train": 0.6,
    **{name: 0.7 * weight for name, weight in _BOOKS.items()},
}
_CLINICAL_TURNS = {
    "turns:medquad": 5.0,
    "turns:mts-dialog-train": 2.5,
    "turns:aci-bench-train": 0.4,
    "turns:mtsamples-noleak": 1.5,
    "turns:e3c-en-ccby": 0.4,
    "turns:openstax-nursing-bundle": 0.7,
    "turns:openstax-anatomy-physiology": 0.5,
    "turns:openstax-microbiology": 0.5,
}
_GENERAL_TURNS = {"turns:openstax-general": 3.0, "turns:gsm8k-train": 1.0}


def _mix(*parts: tuple[Mapping[str, float], float]) -> dict[str, float]:
    mixed: dict[str, float] = {}
    for weights, total in parts:
        for name, share in _equal(tuple(weights), total, weights).items():
            mixed[name] = mixed.get(name, 0.0) + share
    return mixed


_BOOK_TURNS = {f"turns:{name}": weight for name, weight in _BOOKS.items()}
_SOURCES_GENERAL = tuple(_GENERAL)


def _target(shape: Shape, tokens: int) -> Plan:
    return Plan(
        shape,
        text=(*_SOURCES_GENERAL, *TEXTBOOKS),
        turns=("openstax-general", "gsm8k-train", *TEXTBOOKS),
        phases=(
            Phase(0.7, _mix((_GENERAL, 0.6), (_BOOKS, 0.25), (_GENERAL_TURNS, 0.15))),
            Phase(
                1.0,
                _mix((_GENERAL, 0.35), (_BOOKS, 0.2), (_GENERAL_TURNS, 0.3), (_BOOK_TURNS, 0.15)),
            ),
        ),
        tokens=tokens,
        minutes_share=1.0,
    )


def _base(shape: Shape, tokens: int) -> Plan:
    return Plan(
        shape,
        text=_SOURCES_GENERAL,
        turns=("openstax-general", "gsm8k-train"),
        phases=(
            Phase(0.7, _mix((_GENERAL, 0.88), (_GENERAL_TURNS, 0.12))),
            Phase(1.0, _mix((_GENERAL, 0.7), (_GENERAL_TURNS, 0.3))),
        ),
        tokens=tokens,
        minutes_share=0.42,
    )


def _expert(shape: Shape, tokens: int) -> Plan:
    return Plan(
        shape,
        text=(*CLINICAL, "openstax-general"),
        turns=(*CLINICAL, "openstax-general", "gsm8k-train"),
        phases=(
            Phase(
                0.65,
                _mix((_CLINICAL, 0.78), (_CLINICAL_TURNS, 0.16), ({"openstax-general": 1.0}, 0.06)),
            ),
            Phase(
                1.0,
                _mix(
                    (_CLINICAL, 0.38),
                    (_CLINICAL_TURNS, 0.55),
                    (_GENERAL_TURNS, 0.04),
                    ({"openstax-general": 1.0}, 0.03),
                ),
            ),
        ),
        tokens=tokens,
        minutes_share=0.55,
        lr=4e-3,
        embed_lr=3e-3,
        start_from="base",
        characters={"openstax-general": 2_000_000},
    )


DEMO = Preset(
    plans={
        "target": _target(Shape(8192, 256, 4, 4, 2, 704), 40_000_000),
        "base": _base(Shape(6144, 192, 5, 3, 1, 512), 40_000_000),
        "expert": _expert(Shape(6144, 192, 5, 3, 1, 512), 40_000_000),
    },
    characters={"english-novels-100": 8_000_000, "openstax-general": 20_000_000},
)
TINY = Preset(
    plans={
        "target": _target(Shape(1024, 64, 2, 2, 1, 160, 32, 256), 1_000_000),
        "base": _base(Shape(768, 64, 2, 2, 1, 160, 32, 256), 500_000),
        "expert": _expert(Shape(768, 64, 2, 2, 1, 160, 32, 256), 500_000),
    },
    characters={name: 400_000 for name in (*_GENERAL, *_CLINICAL)},
)
