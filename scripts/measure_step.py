"""Measures what one step costs besides the models: the alignment and the combination, in numpy.

    python -m scripts.measure_step

Time of the processor, so that other programs matter little. The vocabularies are real (a target
of 152,000 tokens, proxies of 32,000; see real_vocabularies.py), the rows are made up: as peaked
as those of a model that is sure, and of one that is not. The text is a short note; expert and
base are healed three pieces back at every token of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from capt_local.align.context import CanonicalContext
from capt_local.align.events import TargetEvents
from capt_local.align.fit import AnyAlignment, fit
from capt_local.align.question import Back, FloatArray, Probabilities, Question, View
from capt_local.decode.options import CombineOptions
from capt_local.decode.proxy import softmax
from capt_local.decode.rules import Contrast
from capt_local.engine.weights import Weights
from capt_local.vocab.tokenizer import TextTokenizer
from scripts.real_vocabularies import fetch

TARGET, PROXY = "qwen2", "llama-spm"
NOTE = (
    "Pt is a 58-year-old woman with dyspnea on exertion x 3 days. BP 142/88 mmHg, on room air. "
    "Troponin negative, metoprolol 25 mg continued. Assessment: decompensated cardiomyopathy."
)
PLAUSIBLE = (300, 3000)
ROUNDS = 5


@dataclass
class Shown:
    """A follower that shows made-up rows; see `decode.follower.Follower`."""

    alignment: AnyAlignment
    view: View

    def probability(self, question: Question[object]) -> FloatArray:
        """As a proxy that stands at the text."""
        return self.alignment.probability(question, self.view)


def open_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a real vocabulary."""
    weights = Weights(fetch() / f"ggml-vocab-{name}.gguf", vocabulary_only=True)
    return TextTokenizer(weights.vocabulary, weights.tokenize)


def places(tokenizer: TextTokenizer, depth: int) -> Iterator[tuple[list[int], list[bytes]]]:
    """The last pieces at every word of the note, the very last first, and their bytes."""
    context = CanonicalContext(tokenizer, (), start=True)
    for word in NOTE.split(" "):
        context.append(f"{word} ".encode())
        behind = context.rests(depth)
        yield context.tokens[::-1][: len(behind)], behind


def peaked(rng: np.random.Generator, size: int, plausible: int) -> np.ndarray:
    """Logits that fall with the logarithm of the rank, to 1e-5 of the likeliest at `plausible`.

    Tokens with low ids, which are the common ones, are likelier to stand in front.
    """
    order = np.argsort(np.log(np.arange(1, size + 1)) + 2.0 * rng.gumbel(size=size))
    row = np.empty(size, dtype=np.float32)
    row[order] = np.log(1e-5) * np.log(np.arange(1, size + 1)) / np.log(plausible)
    return row


def measure(plausible: int, target: TextTokenizer, proxy: TextTokenizer) -> None:
    """Prints the milliseconds of one distribution."""
    alignment = fit(proxy, TargetEvents(target))
    rule, rng = Contrast(CombineOptions(), 1), np.random.default_rng(0)
    weights = np.full(len(rule.powers), 1.0 / len(rule.powers))
    spent: list[float] = []
    counts: list[int] = []
    for turn in range(ROUNDS + 1):
        for last, behind in places(proxy, alignment.depth):
            row = peaked(rng, len(target.vocabulary), plausible)
            followers = []
            for _ in ("expert", "base"):
                rows: list[Probabilities] = [
                    softmax(peaked(rng, len(proxy.vocabulary), 1000)) for _ in range(len(last) + 1)
                ]
                back = [Back(*each) for each in zip(rows[1:], last, behind, strict=True)]
                followers.append(Shown(alignment, View(rows[0], back)))
            started = time.thread_time()
            here = rule.distribution(row, followers, weights, start=False)  # type: ignore[arg-type]
            if turn:  # the first round makes the healing tables, which are kept
                spent.append(1000 * (time.thread_time() - started))
                counts.append(len(here.candidates.tokens))
    spent.sort()
    print(
        f"{statistics.median(counts):6.0f} plausible tokens: median {statistics.median(spent):.2f} "
        f"ms a step, 9 of 10 below {spent[len(spent) * 9 // 10]:.2f} ms"
    )


def main() -> None:
    """Measures both kinds of rows."""
    target, proxy = open_tokenizer(TARGET), open_tokenizer(PROXY)
    print(f"{TARGET} ({len(target.vocabulary):,}) x {PROXY} ({len(proxy.vocabulary):,})")
    for plausible in PLAUSIBLE:
        measure(plausible, target, proxy)


if __name__ == "__main__":
    main()
