"""The numbers that the projection was built with, each varied by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from unittest.mock import patch

from capt_local.alignment import cover
from capt_local.alignment.cover import ASIDE, Cover
from capt_local.alignment.events import TargetEvents
from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.projection import DEPTH, FLOOR, Projection
from capt_local.decoding.options import GRID, CombineOptions
from capt_local.tokenization.vocabulary import IntArray, Vocabulary
from scripts.alignment.table import Cell, Table
from scripts.alignment.walk import DEEPEST, Models
from scripts.alignment.weights import Evidence, Gains, Setting, Study

FLOORS = (1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3)
ASIDES = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


class Varied(Projection):
    """A projection with another share for tokens that a longer piece begins, or another depth."""

    def __init__(self, proxy: Vocabulary, events: TargetEvents, aside: float, depth: int) -> None:
        """See `alignment.cover.ASIDE` and `alignment.projection.DEPTH`."""
        self._aside = aside
        super().__init__(proxy, events, long_tokens=True, healing=True)
        self.depth = depth

    def _cover(self, start: bytes, end_ids: IntArray) -> Cover:
        with patch.object(cover, "ASIDE", self._aside):
            return super()._cover(start, end_ids)


def constants(models: Models, texts: Sequence[bytes]) -> list[Table]:
    """Bits per byte of the default mixture and of the expert, one constant changed at a time."""
    alignments = dict(_variants(models))
    plausibility = CombineOptions().plausibility
    settings = {
        **{(f"floor {floor:g}", floor == FLOOR): Setting("as it is", plausibility, None, floor)
           for floor in FLOORS},
        **{(name, name in _DEFAULTS): Setting(name, plausibility)
           for name in alignments if name != "as it is"},
    }  # fmt: skip
    study = Study(alignments, list(settings.values()), ())
    for text in texts:
        study.add(models, text)
    rows: list[tuple[Cell, ...]] = []
    for (name, is_default), setting in settings.items():
        gains = study.gains[setting]
        rows.append((f"**{name}**" if is_default else name, *_figures(gains)))
    title = "Bits per byte with one constant of the projection changed (the default in bold)"
    columns = ("constant", "default mixture", "alpha 0.5", "T^0.25 E A^-0.25", "expert alone")
    return [Table(title, columns, tuple(rows))]


_DEFAULTS = (f"aside {ASIDE:g}", f"depth {DEPTH}")


def _figures(gains: Gains) -> tuple[float, ...]:
    fixed = [gains.fixed(p) for p in ((1.0, 0.5, 0.5), (0.25, 1.0, 0.25), (0.0, 1.0, 0.0))]
    return (gains.mixed(GRID, Evidence()), *fixed)


def _variants(models: Models) -> Iterator[tuple[str, AnyAlignment]]:
    vocabulary = models.tokenizers["expert"].vocabulary
    yield "as it is", models.alignment("projection")
    for aside in ASIDES:
        yield f"aside {aside:g}", Varied(vocabulary, models.events, aside, DEPTH)
    for depth in range(DEEPEST + 1):
        yield f"depth {depth}", Varied(vocabulary, models.events, ASIDE, depth)
