"""How probable texts and answers are, in bits per byte, comparable across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from capt_local.decoding.answers import Choosing
from capt_local.decoding.options import GenerateOptions
from capt_local.errors import ContextOverflow
from capt_local.evaluate.reading.given import Continuation, Given, Question
from capt_local.evaluate.reading.texts import Text
from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Asking:
    """How given answers are asked about.

    Attributes:
        raw: whether a prompt is text to go on with, without a chat template.
        end: whether it counts that a given answer ends where it does.
        how: one of several choices is chosen.
    """

    raw: bool = False
    end: bool = False
    how: Choosing = Choosing.LIKELIHOOD


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What was found about one item.

    Attributes:
        id: of the item.
        nats: -log p of the text, the answer or the right choice; 0 where there is none.
        size: its bytes.
        tokens: of the model whose tokens are scored.
        windows: how often a text was begun afresh because the context was full.
        greedy: whether generating would have given the answer; None where none is given.
        chosen: which of the choices was taken; None where there are none.
        logps: of each choice, in nats.
        correct: whether the choice is the right one; None where that is not known.
        error: why nothing was found.
    """

    id: str
    nats: float = 0.0
    size: int = 0
    tokens: int = 0
    windows: int = 1
    greedy: bool | None = None
    chosen: int | None = None
    logps: tuple[float, ...] = ()
    correct: bool | None = None
    error: str = ""

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 p per byte of UTF-8."""
        return bits_per_byte(self.nats, self.size)


@dataclass(frozen=True, slots=True)
class Total:
    """Several items together.

    Attributes:
        nats: -log p of all texts, answers and right choices.
        size: their bytes.
        tokens: of the model whose tokens are scored.
        again: how often a text was begun afresh because the context was full.
        failed: items about which nothing was found.
        judged: questions of which the right choice is known.
        right: how many of them were chosen rightly.
    """

    nats: float
    size: int
    tokens: int
    again: int
    failed: int
    judged: int
    right: int

    @classmethod
    def of(cls, items: Sequence[Likelihood]) -> Total:
        """Adds items up."""
        judged = [one.correct for one in items if one.correct is not None]
        return cls(
            nats=math.fsum(one.nats for one in items),
            size=sum(one.size for one in items),
            tokens=sum(one.tokens for one in items),
            again=sum(one.windows - 1 for one in items),
            failed=sum(bool(one.error) for one in items),
            judged=len(judged),
            right=sum(judged),
        )

    @property
    def bits_per_byte(self) -> float | None:
        """-log2 p per byte of UTF-8."""
        return bits_per_byte(self.nats, self.size)

    @property
    def accuracy(self) -> float | None:
        """Share of the right choices among those that are known."""
        return self.right / self.judged if self.judged else None


def bits_per_byte(nats: float, size: int) -> float | None:
    """-log2 p per byte; None of nothing."""
    return nats / math.log(2) / size if size else None


def measure(
    runtime: Runtime,
    items: Sequence[Given],
    options: GenerateOptions,
    asking: Asking | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[Likelihood]:
    """Scores every item by itself.

    Args:
        runtime: with the models that the method needs.
        items: texts, answers and questions.
        options: the method, the alignment and the weight of the contrast.
        asking: how answers and questions are asked about.
        cancel: asked at every token; true ends the work.

    Yields:
        What was found about each; one that is longer than the context says so.

    Raises:
        Cancelled: `cancel` said so.
    """
    asking = asking or Asking()
    for item in items:
        try:
            yield _measured(runtime, item, options, asking, cancel)
        except ContextOverflow as error:
            yield Likelihood(item.id, error=str(error))


def _measured(
    runtime: Runtime,
    item: Given,
    options: GenerateOptions,
    asking: Asking,
    cancel: Callable[[], bool] | None,
) -> Likelihood:
    match item:
        case Text():
            text = runtime.score(item.data, options, cancel=cancel)
            return Likelihood(item.id, text.nats, text.size, text.tokens, text.windows)
        case Continuation():
            score = runtime.score_answer(
                item.prompt, item.data, options, raw=asking.raw, cancel=cancel, end=asking.end
            )
            return Likelihood(item.id, score.nats, score.size, score.tokens, greedy=score.greedy)
        case Question():
            return _chosen(runtime, item, options, asking, cancel)


def _chosen(
    runtime: Runtime,
    item: Question,
    options: GenerateOptions,
    asking: Asking,
    cancel: Callable[[], bool] | None,
) -> Likelihood:
    chosen = runtime.choose(
        item.prompt, item.choices, options, raw=asking.raw, cancel=cancel, how=asking.how
    )
    known = item.answer is not None
    scored = chosen.scores[item.answer] if item.answer is not None and chosen.scores else None
    return Likelihood(
        item.id,
        nats=scored.nats if scored else 0.0,
        size=scored.size if scored else 0,
        tokens=scored.tokens if scored else 0,
        chosen=chosen.index,
        logps=chosen.logps,
        correct=chosen.index == item.answer if known else None,
    )
