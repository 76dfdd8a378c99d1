"""How far the cheap alignments are from the exact ones, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from time import perf_counter
from typing import Protocol

import numpy as np

from capt_local.alignment.events import NO_EVENT
from capt_local.alignment.projection import FLOOR
from capt_local.alignment.question import FloatArray
from capt_local.decoding.combine import Candidates, Products, logs, mixture, plausible, products
from capt_local.decoding.evidence import Evidence
from capt_local.decoding.options import GRID
from capt_local.tokenization.prefix_index import PrefixIndex
from capt_local.tokenization.vocabulary import IntArray
from scripts.alignment.beam import Beam, Limits, event_tables
from scripts.alignment.table import Cell, Table
from scripts.alignment.walk import NAMES, PROXIES, Models, Place, ask, of_token, signed

# Errors are measured on candidates that the target gives more than this.
LIKELY = 1e-3
PREFIXES, EVENTS = "exact: prefixes", "exact: token events"
EXPERT = GRID.index((0.0, 1.0, 0.0))
_POWERS = signed((*GRID, (1.0, 1.0, 1.0)))


class Way(Protocol):
    """One way to align."""

    @property
    def rows(self) -> int:
        """Positions decoded so far for expert and base together."""
        ...

    def start(self) -> None:
        """Begins a text."""
        ...

    def ask(self, place: Place) -> tuple[Candidates, FloatArray]:
        """Candidates and what expert and base say about them, shape (2, n), in nats."""
        ...


class Cheap:
    """An alignment of the package.

    Args:
        models: the trio.
        name: of the alignment.
        plausibility: of the candidates.
    """

    def __init__(self, models: Models, name: str, plausibility: float) -> None:
        self._models = models
        self._plausibility = plausibility
        self._alignment = models.alignment(name)

    @property
    def rows(self) -> int:
        """The walk decodes them for all alignments together."""
        return sum(self._models.cached[role].decoded for role in PROXIES)

    def start(self) -> None:
        """Needs nothing."""

    def ask(self, place: Place) -> tuple[Candidates, FloatArray]:
        """See `Way`."""
        own = plausible(place.row, self._plausibility, self._alignment.most)
        question, said = ask(self._alignment, own, place.views, start=place.start)
        return own, logs(said, question.has_say, own.logp, self._alignment.floor)


class Exact:
    """Beams over all tokenizations.

    Args:
        models: the trio.
        limits: of the beams.
        plausibility: of the candidates.
        prefixes: whether the probability of a token is that the text goes on with its bytes, or
            that the target's tokenization of what follows starts with it.
    """

    def __init__(
        self, models: Models, limits: Limits, plausibility: float, *, prefixes: bool
    ) -> None:
        self._models = models
        self._plausibility = plausibility
        index = PrefixIndex(models.tokenizers["expert"].vocabulary)
        self._beams = {role: Beam(models.second(role), index, limits) for role in PROXIES}
        self._tables = None if prefixes else event_tables(index, models.events)

    @property
    def rows(self) -> int:
        """See `Way`; tails are decoded again at every place."""
        return sum(beam.cached.decoded for beam in self._beams.values())

    def start(self) -> None:
        """See `Way`."""
        prompts = self._models.prompts()
        for role, beam in self._beams.items():
            beam.start(prompts[role])

    def ask(self, place: Place) -> tuple[Candidates, FloatArray]:
        """See `Way`."""
        own, events = plausible(place.row, self._plausibility), self._models.events
        wanted = (events.of_first_token if place.start else events.of_token)[own.tokens]
        said = []
        for beam in self._beams.values():
            if not place.start:
                beam.append(place.last)
            if self._tables is None:
                said.append(beam.prefixes(wanted, events))
            else:
                said.append(beam.events(wanted, self._tables))
        return own, logs(said, wanted > NO_EVENT, own.logp, FLOOR)


@dataclass(slots=True)
class Record:
    """What one way did along the texts.

    Attributes:
        choices: tokens chosen with alpha 1, and by the default mixture.
        contrasts: of the likely candidates at each place; nan where it does not compare them.
        nats: -log p of the texts under the default mixture, and under the expert.
        seconds: of all questions.
    """

    choices: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    contrasts: list[FloatArray] = field(default_factory=list)
    nats: FloatArray = field(default_factory=lambda: np.zeros(2))
    seconds: float = 0.0

    def take(self, place: Place, own: Candidates, said: FloatArray, evidence: Evidence) -> None:
        """Chooses, and lets the evidence follow the text."""
        members = products(own, said, _POWERS)
        grid = Products(*(each[:-1] for each in members))
        mixed = mixture(grid, evidence.weights)
        self.choices[0].append(int(own.tokens[members.logp[-1].argmax()]))
        self.choices[1].append(int(own.tokens[mixed.argmax()]))
        came = of_token(place, own, np.vstack((grid.logp, mixed)))
        self.nats -= came[[-1, EXPERT]]
        evidence.observe(came[:-1])
        row = np.full(len(place.row), np.nan)
        row[own.tokens] = said[0] - said[1]
        self.contrasts.append(row[_likely(place)])


def compare(
    models: Models, texts: Sequence[bytes], limits: Limits, plausibility: float
) -> list[Table]:
    """Walks the texts with every way; see the headings."""
    ways: dict[str, Way] = {
        PREFIXES: Exact(models, limits, plausibility, prefixes=True),
        EVENTS: Exact(models, limits, plausibility, prefixes=False),
        **{name: Cheap(models, name, plausibility) for name in NAMES},
    }
    records = {name: Record() for name in ways}
    before = {name: way.rows for name, way in ways.items()}
    likely = _walk(models, texts, ways, records)
    decoded = {name: way.rows - before[name] for name, way in ways.items()}
    size = log(2) * sum(map(len, texts))
    columns = (
        "alignment", "error to prefixes, nats", "weighted", "error to events, nats", "weighted",
        "other choice, alpha 1", "other choice, mixture", "bits per byte, mixture", "expert",
        "positions a step and proxy", "ms a step",
    )  # fmt: skip
    title = (
        f"{len(likely)} steps. Errors of the contrast over tokens of more than {LIKELY:g} under "
        "the target, the mean and weighted by the target's probability; choices beside those of "
        "exact prefixes. The time of the cheap ones is without the models."
    )
    return [Table(title, columns, tuple(_rows(records, decoded, likely, size)))]


def _walk(
    models: Models, texts: Sequence[bytes], ways: dict[str, Way], records: dict[str, Record]
) -> list[FloatArray]:
    """Fills the records; returns the target's probabilities of its likely tokens, by place."""
    likely: list[FloatArray] = []
    for text in texts:
        evidence = {name: Evidence(len(GRID)) for name in ways}
        for way in ways.values():
            way.start()
        for place in models.walk(text):
            likely.append(np.exp(plausible(place.row, 0.0).logp[_likely(place)]))
            for name, way in ways.items():
                begun = perf_counter()
                own, said = way.ask(place)
                records[name].seconds += perf_counter() - begun
                records[name].take(place, own, said, evidence[name])
    return likely


def _rows(
    records: dict[str, Record], decoded: dict[str, int], likely: list[FloatArray], size: float
) -> Iterator[tuple[Cell, ...]]:
    count = len(likely)
    for name, one in records.items():
        errors = [_error(one, records[reference], likely) for reference in (PREFIXES, EVENTS)]
        differs = [
            float(np.mean(np.array(mine) != np.array(theirs)))
            for mine, theirs in zip(one.choices, records[PREFIXES].choices, strict=True)
        ]
        bits = (one.nats / size).tolist()
        cost = (decoded[name] / count / len(PROXIES), 1000 * one.seconds / count)
        yield (name, *errors[0], *errors[1], *differs, *bits, *cost)


def _likely(place: Place) -> IntArray:
    """The target's likely tokens at a place, ascending."""
    own = plausible(place.row, 0.0)
    found: IntArray = own.tokens[np.exp(own.logp) > LIKELY]
    return found


def _error(one: Record, other: Record, likely: list[FloatArray]) -> tuple[float, float]:
    """Mean |difference| of the contrasts, over places of the mean and of the weighted mean."""
    plain, weighted = [], []
    for mine, theirs, own in zip(one.contrasts, other.contrasts, likely, strict=True):
        difference = np.abs(mine - theirs)
        known = ~np.isnan(difference)
        if known.any():
            plain.append(float(difference[known].mean()))
            weighted.append(float(difference[known] @ own[known] / own[known].sum()))
    return float(np.mean(plain)), float(np.mean(weighted))
