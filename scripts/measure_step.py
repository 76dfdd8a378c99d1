"""Measures what one step costs besides the models: Python and numpy, from text to text.

    python -m scripts.measure_step

Time of the processor, so that other programs matter little. The vocabularies are real (a target
of 152,000 tokens, proxies of 32,000; see real_vocabularies.py), the models compute nothing: their
rows are made up, as peaked as those of a model that is sure, and of one that is not. The target
writes a short note, token by token; expert and base are healed up to three pieces back. The first
time that the note is written the healing tables are made; the times after that are measured.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from capt_local.align.events import TargetEvents
from capt_local.align.fit import AnyAlignment, fit
from capt_local.align.projection import Projection
from capt_local.decoding import proxy as proxies
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.loop import Walk
from capt_local.decoding.options import GenerateOptions
from capt_local.decoding.rules import Contrast
from capt_local.decoding.trio import Trio
from capt_local.engine.weights import Weights
from capt_local.prompt.messages import Prompt, Segment
from capt_local.vocab.tokenizer import TextTokenizer
from scripts.real_vocabularies import fetch

TARGET, PROXY = "qwen2", "llama-spm"
NOTE = (
    "Pt is a 58-year-old woman with dyspnea on exertion x 3 days. BP 142/88 mmHg, on room air. "
    "Troponin negative, metoprolol 25 mg continued. Assessment: decompensated cardiomyopathy."
)
PLAUSIBLE = (300, 3000)
ROUNDS = 10
MODELS, REST, ALL = "the models", "choice, record and what lies between", "a step"
WATCHED = (
    (Contrast, "candidates", "row of the target"),
    (proxies, "softmax", "rows of expert and base"),
    (proxies.Proxy, "append", "tokens of expert and base"),
    (Contrast, "questions", "projection and healing"),
    (Projection, "probability", "projection and healing"),
    (Contrast, "logs", "combination"),
    (Contrast, "combined", "combination"),
)

PARTS = (*dict.fromkeys(part for _, _, part in WATCHED), REST, ALL)


class Shown:
    """A model that shows made-up rows; see `decode.model.Model`."""

    can_rewind = True
    max_rows = 64
    context_limit = 1 << 20

    def __init__(self, tokenizer: TextTokenizer, rows: np.ndarray) -> None:
        """Keeps the rows of a text's places; behind the last one comes the first again."""
        self.vocabulary = tokenizer.vocabulary
        self.position = 0
        self._rows = rows
        self._shown = np.empty((self.max_rows, rows.shape[1]), np.float32)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        """Copies rows to one place in memory, as llama.cpp does."""
        self.position += len(tokens)
        for place in range(rows):
            number = self.position - rows + place
            self._shown[place] = self._rows[number % len(self._rows)]
        return self._shown[:rows]

    def price(self, count: int) -> float:
        """Of a batch; nothing is drafted here."""
        return float(count)

    def rewind(self, length: int) -> bool:
        """Goes back."""
        self.position = length
        return True


class Clock:
    """The processor's time by part; what one part spends in another is the other's."""

    def __init__(self) -> None:
        """Has seen nothing."""
        self.laps: dict[str, list[float]] = defaultdict(list)
        self._now: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            started = time.thread_time()
            result = function(*args, **kwargs)
            spent = time.thread_time() - started
            self._now[part] += spent - self._inside.pop()
            self._inside[-1] += spent
            return result

        return watched

    def lap(self) -> None:
        """Ends a step."""
        del self._now[MODELS]
        self._now[ALL] = sum(self._now.values())
        for part, spent in self._now.items():
            self.laps[part].append(1000 * spent)
        self._now.clear()


def open_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a real vocabulary."""
    weights = Weights(fetch() / f"ggml-vocab-{name}.gguf", vocabulary_only=True)
    return TextTokenizer(weights.vocabulary, weights.tokenize)


def peaked(rng: np.random.Generator, size: int, plausible: int) -> np.ndarray:
    """Logits that fall with the logarithm of the rank, to 1e-5 of the likeliest at `plausible`.

    Tokens with low ids, which are the common ones, are likelier to stand in front.
    """
    order = np.argsort(np.log(np.arange(1, size + 1)) + 2.0 * rng.gumbel(size=size))
    row = np.empty(size, dtype=np.float32)
    row[order] = np.log(1e-5) * np.log(np.arange(1, size + 1)) / np.log(plausible)
    return row


def made_up(
    plausible: int, target: TextTokenizer, proxy: TextTokenizer, alignment: AnyAlignment, size: int
) -> Trio:
    """Three models that show other rows at each of `size` places."""
    rng = np.random.default_rng(0)
    shown = {
        "target": [peaked(rng, len(target.vocabulary), plausible) for _ in range(size)],
        "expert": [peaked(rng, len(proxy.vocabulary), 1000) for _ in range(size)],
        "base": [peaked(rng, len(proxy.vocabulary), 1000) for _ in range(size)],
    }
    models = {
        role: Shown(target if role == "target" else proxy, np.array(rows))
        for role, rows in shown.items()
    }
    own, *others = (CachedModel(*each) for each in models.items())  # type: ignore[arg-type]
    return Trio(own, [proxies.Proxy(each, proxy, alignment) for each in others])


def measure(
    clock: Clock, plausible: int, target: TextTokenizer, proxy: TextTokenizer
) -> dict[str, float]:
    """The median milliseconds of each part of a step."""
    note = target.encode(NOTE.encode(), start=False)
    trio = made_up(plausible, target, proxy, fit(proxy, TargetEvents(target)), len(note))
    step, prompt = clock.timed(REST, next), Prompt((Segment((0,)),))
    for turn in range(ROUNDS + 1):
        trio.start(dict.fromkeys(("target", "expert", "base"), prompt))
        walk = iter(Walk(trio, GenerateOptions(max_tokens=len(note)), force=note.__getitem__))
        for _ in note:
            step(walk)
            clock.lap()
        if not turn:
            clock.laps.clear()
    return {part: statistics.median(clock.laps[part]) for part in PARTS}


def main() -> None:
    """Measures both kinds of rows."""
    target, proxy = open_tokenizer(TARGET), open_tokenizer(PROXY)
    clock = Clock()
    for owner, name, part in ((Shown, "extend", MODELS), *WATCHED):
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    found = [measure(clock, number, target, proxy) for number in PLAUSIBLE]
    print(f"{TARGET} ({len(target.vocabulary):,}) x {PROXY} ({len(proxy.vocabulary):,}), median ms")
    print(f"{'plausible tokens':40}", *(f"{number:6}" for number in PLAUSIBLE))
    for part in PARTS:
        print(f"{part:40}", *(f"{each[part]:6.3f}" for each in found))


if __name__ == "__main__":
    main()
