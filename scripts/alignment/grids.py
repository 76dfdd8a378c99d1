"""The tables of weights, evidence, plausibility, candidates and alignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from capt_local.decoding.options import GRID, CombineOptions, Powers
from scripts.alignment.table import Cell, Table
from scripts.alignment.walk import NAMES, Models
from scripts.alignment.weights import FINE, Evidence, Gains, Setting, Study

EVIDENCE = (
    *(Evidence(factor) for factor in (1.0, 0.99, 0.98, 0.95, 0.9)),
    Evidence(frozen=16),
    Evidence(frozen=64),
)
_TARGET: Powers = (1.0, 0.0, 0.0)
_SMALL: tuple[Powers, ...] = (_TARGET, (0.5, 0.5, 0.0), (0.25, 1.0, 0.25))
_ALPHAS: tuple[Powers, ...] = (_TARGET, (1.0, 0.5, 0.5), (1.0, 0.75, 0.75), (1.0, 1.0, 1.0))
PLAUSIBILITIES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
MOSTS = (None, 200, 20)
# How many of the best single products are told.
_TOLD = 12
# Asking for all candidates takes it half a second a step.
_SLOW = "prefix-mass"


def grids() -> dict[str, tuple[Powers, ...]]:
    """Sets of products that may be mixed, by name."""
    found = {"default": GRID, "alpha 0, 0.5, 0.75, 1": _ALPHAS}
    for powers in GRID:
        if powers != _TARGET:
            found[f"default without {_name(powers)}"] = tuple(p for p in GRID if p != powers)
    found[", ".join(map(_name, _SMALL))] = _SMALL
    found[f"all {len(FINE)}"] = FINE
    return found


def weights_tables(models: Models, texts: Sequence[bytes]) -> list[Table]:
    """Fixed weights, mixtures and evidence, with the default alignment and plausibility."""
    setting = Setting("projection", CombineOptions().plausibility)
    study = Study({setting.alignment: models.alignment(setting.alignment)}, [setting], FINE)
    for text in texts:
        study.add(models, text)
    gains = study.gains[setting]
    target = gains.fixed(_TARGET)
    ranked = sorted((gains.fixed(powers), powers) for powers in gains.powers)
    rows = [(_name(p), bits, bits / target) for bits, p in ranked[:_TOLD]]
    rows += [(_name(p), gains.fixed(p), gains.fixed(p) / target) for p in (*_ALPHAS, *GRID)]
    columns = ("T^a E^b A^-c", "bits per byte", "to the target")
    fixed = Table(
        f"Fixed weights: the best {_TOLD}, alphas, and the default grid",
        columns, tuple(dict.fromkeys(rows)),
    )  # fmt: skip
    return [fixed, *_mixtures(gains, target)]


def _mixtures(gains: Gains, target: float) -> list[Table]:
    columns = ("mixture", *(how.name for how in EVIDENCE))
    rows: list[tuple[Cell, ...]] = [
        (name, *(gains.mixed(grid, how) for how in EVIDENCE)) for name, grid in grids().items()
    ]
    ratios = tuple((row[0], *(float(cell) / target for cell in row[1:])) for row in rows)
    return [
        Table("Weights from the evidence, bits per byte", columns, tuple(rows)),
        Table("The same to the target alone", columns, ratios),
    ]


def limits_table(models: Models, texts: Sequence[bytes]) -> list[Table]:
    """Alignment x plausibility x candidates, with the default mixture and two fixed weights."""
    settings = [
        Setting(name, plausibility, most)
        for name in NAMES
        for plausibility in PLAUSIBILITIES
        for most in MOSTS
        if name != _SLOW or (most == MOSTS[1] and plausibility > 0)
    ]
    study = Study({name: models.alignment(name) for name in NAMES}, settings, _ALPHAS)
    for text in texts:
        study.add(models, text)

    def table(title: str, bits: Callable[[Gains], float]) -> Table:
        columns = ("alignment, candidates", *(f"plausibility {each:g}" for each in PLAUSIBILITIES))
        return Table(f"Bits per byte, {title}", columns, tuple(_limits(study, bits)))

    fixed = ((1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (0.25, 1.0, 0.25), (0.0, 1.0, 0.0))
    return [
        table("default mixture", lambda gains: gains.mixed(GRID, Evidence())),
        *(table(f"fixed {_name(p)}", partial(Gains.fixed, powers=p)) for p in fixed),
    ]


def _limits(study: Study, bits: Callable[[Gains], float]) -> Iterable[tuple[Cell, ...]]:
    for name in NAMES:
        for most in MOSTS:
            settings = [Setting(name, plausibility, most) for plausibility in PLAUSIBILITIES]
            found = [study.gains.get(setting) for setting in settings]
            if any(found):
                cells = ("-" if gains is None else bits(gains) for gains in found)
                yield f"{name}, {'all' if most is None else most}", *cells


def _name(powers: Powers) -> str:
    return f"({', '.join(f'{power:g}' for power in powers)})"
