"""What an alignment loses of the expert, and what would win some of it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log

import numpy as np

from capt_local.alignment.question import FloatArray, Probabilities
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.combine import Candidates, logs, plausible, products
from capt_local.decoding.options import GRID, CombineOptions
from capt_local.decoding.proxy import softmax
from capt_local.tokenization.prefix_index import PrefixIndex
from scripts.alignment.beam import Beam, Limits
from scripts.alignment.branching import Branching
from scripts.alignment.pairs import Pairs
from scripts.alignment.table import Table
from scripts.alignment.walk import PROXIES, Models, Place, ask, of_token, signed
from scripts.alignment.weights import Evidence, Gains

# Pairs are looked up for candidates of more than this under any of the models.
LIKELY = 1e-3
CHEAP = ("projection", "without healing", "without long tokens", "first-piece", "capt-paper")
EXPERT = (0.0, 1.0, 0.0)
PLAUSIBILITIES = (0.0, CombineOptions().plausibility)
BRANCHES = (1, 4)
# Log-probabilities of expert and base about the candidates, shape (2, n).
Way = Callable[[Place, Candidates], FloatArray]


def own_bits(models: Models, texts: Sequence[bytes], limits: Limits) -> list[Table]:
    """The expert's bits per byte in its own tokens, and over all tokenizations, telescoped."""
    expert, tokenizer = models.cached["expert"], models.tokenizers["expert"]
    beam = Beam(models.second("expert"), PrefixIndex(tokenizer.vocabulary), limits)
    canonical = telescoped = best = 0.0
    steps = decoded = 0
    for text in texts:
        prompt = models.prompts()["expert"]
        tokens = [*prompt.tokens, *tokenizer.encode(text, start=True)]
        for place in range(len(prompt.tokens), len(tokens)):
            row = softmax(expert.follow(tokens[:place], 1)[0])
            canonical -= log(float(row[tokens[place]]))
        telescoped -= beam.start(prompt)
        vocabulary, before = models.cached["target"].model.vocabulary, beam.cached.decoded
        lead = models.prompts()["target"].lead
        for token in models.tokens(text):
            telescoped -= beam.append(vocabulary.text((token,)).removeprefix(lead))
            lead = b""
            steps += 1
        best -= beam.coverings.log_prefix
        decoded += beam.cached.decoded - before
    size = sum(map(len, texts)) * log(2)
    rows = (
        ("expert, its own tokens", canonical / size, 1.0),
        ("all tokenizations, token by token of the target", telescoped / size,
         telescoped / canonical),
        ("the same, lower bound of the whole", best / size, best / canonical),
    )  # fmt: skip
    title = f"The expert's own probability of the texts; {decoded / steps:.1f} positions a step"
    return [Table(title, ("how", "bits per byte", "to its own tokens"), rows)]


class Loss:
    """Walks texts and asks the expert, and the mixture, in several ways.

    Args:
        models: the trio.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self.pairs = Pairs(models.tokenizers["target"])
        self.refused = 0
        self.steps = 0
        vocabulary = models.tokenizers["expert"].vocabulary
        self.branchings = {most: Branching(vocabulary, models.events, most) for most in BRANCHES}
        self._ways: dict[str, Way] = {name: partial(self._cheap, name) for name in CHEAP}
        for name in ("projection", "without healing"):
            self._ways[f"{name}, pairs"] = partial(self._paired, name)
        self._alignments = {name: models.alignment(name) for name in CHEAP}
        for most in BRANCHES:
            self._ways[f"projection, {most} read on"] = partial(self._branched, most)
        self._ways[f"projection, {BRANCHES[-1]} read on, pairs"] = self._both
        self.gains = {
            (name, plausibility): Gains((*GRID, (1.0, 0.5, 0.5)))
            for name in self._ways
            for plausibility in PLAUSIBILITIES
        }

    def add(self, text: bytes) -> None:
        """Walks one text."""
        found: dict[tuple[str, float], list[FloatArray]] = {key: [] for key in self.gains}
        for place in self._models.walk(text):
            self.steps += 1
            if place.before is not None:
                self.refused += not self.pairs.stand(place.before, place.token)
            for (name, plausibility), came in found.items():
                own = plausible(place.row, plausibility, _most(self._alignments.get(name)))
                powers = signed(self.gains[name, plausibility].powers)
                members = products(own, self._ways[name](place, own), powers).logp
                came.append(of_token(place, own, members))
        for key, gains in self.gains.items():
            gains.texts.append(np.array(found[key]))
            gains.sizes.append(len(text))

    def tables(self) -> list[Table]:
        """What was found."""
        low, high = PLAUSIBILITIES
        rows = tuple(
            (
                name,
                self.gains[name, low].fixed(EXPERT),
                self.gains[name, high].fixed(EXPERT),
                self.gains[name, high].fixed((0.25, 1.0, 0.25)),
                self.gains[name, high].mixed(GRID, Evidence()),
            )
            for name in self._ways
        )
        columns = (
            "through", f"expert, plausibility {low:g}", f"expert, {high:g}",
            f"T^0.25 E A^-0.25, {high:g}", f"default mixture, {high:g}",
        )  # fmt: skip
        read_on = ", ".join(
            f"{each.positions / each.questions:.2f} of at most {most}"
            for most, each in self.branchings.items()
        )
        title = (
            f"Bits per byte through alignments, {self.steps} steps; positions read on a step and "
            f"proxy: {read_on}; pairs looked up: {self.pairs.asked}, "
            f"true tokens refused: {self.refused}"
        )
        return [Table(title, columns, rows)]

    def _cheap(self, name: str, place: Place, own: Candidates) -> FloatArray:
        alignment = self._alignments[name]
        question, said = ask(alignment, own, place.views, start=place.start)
        return logs(said, question.has_say, own.logp, alignment.floor)

    def _paired(self, name: str, place: Place, own: Candidates) -> FloatArray:
        return self._refuse(place, own, self._cheap(name, place, own))

    def _branched(self, most: int, place: Place, own: Candidates) -> FloatArray:
        alignment = self.branchings[most]
        question = alignment.ask(own.tokens, np.exp(own.logp), start=place.start)
        said = []
        for role, view in zip(PROXIES, place.views, strict=True):
            cached = self._models.cached[role]
            alignment.read = partial(_read, cached)
            shown = view._replace(back=view.back[: alignment.depth])
            said.append(alignment.probability(question, shown))
        return logs(said, question.has_say, own.logp, alignment.floor)

    def _both(self, place: Place, own: Candidates) -> FloatArray:
        return self._refuse(place, own, self._branched(BRANCHES[-1], place, own))

    def _refuse(self, place: Place, own: Candidates, rows: FloatArray) -> FloatArray:
        asked = np.vstack((rows, own.logp)).max(axis=0) > log(LIKELY)
        factors = self.pairs.factors(place.before, own.tokens.tolist(), asked)
        result: FloatArray = rows + np.log(factors)
        return result


def _read(cached: CachedModel, pieces: Sequence[int]) -> list[Probabilities]:
    return [softmax(row) for row in cached.branch([(piece,) for piece in pieces])]


def _most(alignment: object) -> int | None:
    return getattr(alignment, "most", None)
