"""What a bundle does when it runs: a short answer, and how well a text is predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.cli.models.create_flags import CheckFlags
from capt_local.cli.options import ModelFlags
from capt_local.cli.signals import Interrupt
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle
    from capt_local.cli.session import Session
    from capt_local.decoding.options import GenerateOptions
    from capt_local.evaluate.reading.texts import Text
    from capt_local.report.json import Answer
    from capt_local.runtime import Runtime

QUESTION = "What are the symptoms of pneumonia?"
_TOKENS = 48
_ALPHAS = (0.0, 0.5, 1.0, 1.5)
TARGET, EVIDENCE = "alpha 0, the target alone", "weights from the evidence"
EXPERT, BASE = "the expert alone", "the base alone"


@dataclass(frozen=True, slots=True)
class Sample:
    """A text to measure on.

    Attributes:
        texts: of it.
        own: whether the user gave it, so that nothing of it may be kept.
    """

    texts: Sequence[Text]
    own: bool

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(len(text.data) for text in self.texts)

    def __str__(self) -> str:
        """For people."""
        what = "a text that was given" if self.own else "an invented note"
        return f"{what} of {self.size:,} bytes"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found.

    Attributes:
        sample: that it was measured on.
        bits: per byte of the sample, by what gave the probabilities; None where it has none.
        answer: to our question.
    """

    sample: Sample
    bits: dict[str, float | None]
    answer: Answer

    def findings(self) -> Iterator[str]:
        """What the user should know."""
        if not self.answer.tokens or not (self.answer.text.strip() or self.answer.thought_tokens):
            yield "The models answered our question with nothing."
        if any(bits is None for bits in self.bits.values()):
            yield "Some figures are missing: the text has probability 0 there, or did not fit."
            return
        known = {name: bits for name, bits in self.bits.items() if bits is not None}
        best = min(known[name] for name in known if name not in (EXPERT, BASE))
        if best >= known[TARGET]:
            yield "On this text no weight of the expert is better than the target alone."
        if known[BASE] < known[EXPERT]:
            yield (
                "The base predicts this text better than the expert: see whether the two are "
                "swapped, or the text is not of the expert's field."
            )


def read_sample(path: Path | None) -> Sample:
    """The user's text, or ours.

    Raises:
        UsageError: it cannot be read.
    """
    from capt_local.evaluate.reading.texts import Text, read_texts

    if path is not None:
        return Sample(read_texts(path, "The sample (--sample)"), own=True)
    place = resources.files("capt_local") / "data" / "create_sample.txt"
    return Sample([Text("sample", place.read_bytes())], own=False)


def measured(bundle: Bundle, sample: Sample, how: CheckFlags, screen: Screen) -> Measured:
    """Runs a bundle whose digests were taken just now.

    Raises:
        ModelError, MemoryShortage: it cannot be loaded.
        NumericalError: a model computes no numbers.
        Cancelled: Ctrl-C was pressed.
    """
    from capt_local.cli.session import answer_to

    try:
        with Interrupt() as interrupt:
            session = _opened(bundle, how, screen, interrupt)
            with session.runtime as runtime:
                screen.progress("answering", 0.0)
                answer = answer_to(session, QUESTION, _greedy(bundle))
                interrupt.check()
                bits = dict(_bits(runtime, bundle, sample, screen, interrupt))
    finally:
        screen.clear_progress()
    return Measured(sample, bits, answer)


def _opened(bundle: Bundle, how: CheckFlags, screen: Screen, interrupt: Interrupt) -> Session:
    """The models, whose digests were taken and which another process looked into just now."""
    from capt_local.bundle.check import Check
    from capt_local.cli.session import Session, load_options
    from capt_local.runtime import Runtime
    from capt_local.runtime.first_look import NOT_LOOKED_AT

    def progress(role: str, fraction: float) -> None:
        interrupt.check()
        screen.progress(f"loading {role}", fraction)

    load = load_options(ModelFlags(gpu_layers=how.gpu_layers, threads=how.threads), bundle)
    started = time.perf_counter()
    runtime = Runtime.open(bundle, load=load, progress=progress, check=Check.NEVER)
    screen.notes(note for note in runtime.notices if note != NOT_LOOKED_AT)
    return Session(runtime, screen, interrupt, load, None, time.perf_counter() - started)


def _greedy(bundle: Bundle) -> GenerateOptions:
    """As the bundle asks, but short, and the likeliest token each time."""
    from capt_local.cli.options import MethodFlags, SampleFlags
    from capt_local.cli.session import generate_options

    sample = SampleFlags(max_tokens=_TOKENS, temp=0.0)
    return generate_options(bundle, MethodFlags(), sample, 0)


def _ways(bundle: Bundle) -> Iterator[tuple[str, GenerateOptions]]:
    """How the sample is measured, each with its name."""
    from capt_local.decoding.options import CombineOptions, GenerateOptions, Method

    combine = CombineOptions()
    if bundle.defaults.plausibility is not None:
        combine = replace(combine, plausibility=bundle.defaults.plausibility)
    for alpha in _ALPHAS:
        name = f"alpha {alpha:g}" if alpha else TARGET
        yield name, GenerateOptions(combine=replace(combine, alphas=(alpha,)))
    yield EVIDENCE, GenerateOptions(combine=combine)
    yield EXPERT, GenerateOptions(method=Method.EXPERT)
    yield BASE, GenerateOptions(method=Method.BASE)


def _bits(
    runtime: Runtime, bundle: Bundle, sample: Sample, screen: Screen, interrupt: Interrupt
) -> Iterator[tuple[str, float | None]]:
    """Bits per byte of the sample, for each way."""
    from capt_local.evaluate.likelihood import Total, measure

    ways = list(_ways(bundle))
    for place, (name, options) in enumerate(ways):
        screen.progress(f"measuring {name}", place / len(ways))
        runtime.forget()  # what an earlier way left in the caches may not make a difference
        total = Total.of(list(measure(runtime, sample.texts, options, cancel=interrupt)))
        bits = None if total.failed else total.bits_per_byte
        yield name, bits if bits is not None and math.isfinite(bits) else None
