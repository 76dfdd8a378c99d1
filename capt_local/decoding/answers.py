"""How probable given answers are after a prompt, and which of several is chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capt_local.decoding.boundary import Placed, place
from capt_local.decoding.constrained import constrained
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.scoring import Event, score_paths
from capt_local.errors import ContextOverflow, UsageError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer


class Choosing(StrEnum):
    """How one of several answers is chosen.

    The first three take the answer with the largest log-likelihood: as it is, per byte, or per
    token of the target. The last one generates, token by token at temperature 0, among tokens
    that keep the answer the beginning of a choice; where a choice is complete and another goes
    on, the end of the answer is one of them.
    """

    LIKELIHOOD = "likelihood"
    PER_BYTE = "per-byte"
    PER_TOKEN = "per-token"
    CONSTRAINED = "constrained"


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Log-likelihood of a given answer.

    Attributes:
        nats: -log p of the answer.
        tokens: of the target; the end is not counted.
        size: bytes of the answer.
        greedy: whether each token was the likeliest (of those that begin with the bytes of the
            prompt that it goes on from), so that generating would have given the answer.
    """

    nats: float
    tokens: int
    size: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of several answers.

    Attributes:
        index: of the answer; the first of equals.
        scores: of each answer; empty where it was constrained.
    """

    index: int
    scores: tuple[AnswerScore, ...] = ()

    @property
    def logps(self) -> tuple[float, ...]:
        """Log-likelihood of each answer, in nats."""
        return tuple(-score.nats for score in self.scores)


class Answers:
    """Judges given answers to one prompt.

    Args:
        ensemble: configured.
        tokenizers: of its models, by role.
        prompts: by role.
        cancel: asked at every token.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        tokenizers: Mapping[str, TextTokenizer],
        prompts: Mapping[str, Prompt],
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        """Decodes nothing yet."""
        self._ensemble = ensemble
        self._tokenizers = tokenizers
        self._prompts = prompts
        self._cancel = cancel

    def score(self, answer: bytes, *, end: bool = False) -> AnswerScore:
        """Log-likelihood of one answer; see `scores`."""
        return self.scores((answer,), end=end)[0]

    def scores(self, answers: Sequence[bytes], *, end: bool = False) -> tuple[AnswerScore, ...]:
        """Log-likelihood of each answer in the target's tokens, canonical behind the prompt.

        The weights of the contrast come from the prompt, as when generating. The prompt, and what
        answers have in common, is decoded once.

        Args:
            answers: UTF-8, none of them empty.
            end: whether it counts that the answer ends there: any end token.

        Raises:
            UsageError: an answer is empty or not UTF-8.
            ModelError: the vocabulary cannot spell an answer.
            ContextOverflow: prompt and answer do not fit; nothing was computed.
            Cancelled: `cancel` said so.
        """
        places = self._places(answers)
        groups: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for number, placed in enumerate(places):
            key = (placed.prompts[self._ensemble.leader.role].tokens, placed.given)
            groups.setdefault(key, []).append(number)
        said: dict[int, list[Event]] = {}
        for numbers in groups.values():
            first = places[numbers[0]]
            found = score_paths(
                self._ensemble,
                first.prompts,
                [places[number].tokens for number in numbers],
                end=end,
                given=first.given,
                cancel=self._cancel,
            )
            said.update(zip(numbers, found, strict=True))
        return tuple(_score(placed, said[number]) for number, placed in enumerate(places))

    def choose(self, choices: Sequence[bytes], how: Choosing = Choosing.LIKELIHOOD) -> Chosen:
        """Chooses one of several answers.

        The end of an answer counts where the choice is constrained, and where one choice is the
        beginning of another: without its end the shorter one is never less likely.

        Args:
            choices: UTF-8, different, none of them empty.
            how: see `Choosing`.

        Raises:
            UsageError: there are no choices, or two are the same, or as for `scores`.
            ModelError, ContextOverflow, Cancelled: see `scores`.
        """
        if not choices:
            raise UsageError("There are no choices.")
        if len(set(choices)) < len(choices):
            raise UsageError("Two choices are the same.")
        if how is Choosing.CONSTRAINED:
            self._places(choices)
            return Chosen(constrained(self._ensemble, self._prompts, choices, self._cancel))
        scores = self.scores(choices, end=_nested(choices))
        rates = [-score.nats / _length(score, how) for score in scores]
        return Chosen(max(range(len(rates)), key=rates.__getitem__), scores)

    def _places(self, answers: Sequence[bytes]) -> list[Placed]:
        """The tokens of all answers, known to fit."""
        limits = {each.role: each.model.context_limit for each in self._ensemble.models}
        places = []
        for answer in answers:
            _check(answer)
            placed = place(self._ensemble.leader.role, self._prompts, self._tokenizers, answer)
            if any(placed.counts[role] > limit for role, limit in limits.items()):
                raise ContextOverflow(placed.counts, min(limits.values()))
            places.append(placed)
        return places


def as_utf8(answer: str) -> bytes:
    """The bytes of an answer.

    Raises:
        UsageError: it holds half of a character.
    """
    try:
        return answer.encode()
    except UnicodeEncodeError:
        # The error itself holds the text.
        raise UsageError("An answer holds half of a character (a lone surrogate).") from None


def _check(answer: bytes) -> None:
    if not answer:
        raise UsageError("An answer is empty.")
    try:
        answer.decode("utf-8")
    except UnicodeDecodeError as error:
        # The error itself holds the bytes.
        raise UsageError(f"An answer is not UTF-8 at byte {error.start}.") from None


def _nested(choices: Sequence[bytes]) -> bool:
    """Whether one of different choices is the beginning of another."""
    ordered = sorted(choices)  # then what begins with a choice stands right behind it
    return any(after.startswith(one) for one, after in itertools.pairwise(ordered))


def _length(score: AnswerScore, how: Choosing) -> int:
    lengths = {Choosing.PER_BYTE: score.size, Choosing.PER_TOKEN: score.tokens}
    return lengths.get(how, 1)


def _score(placed: Placed, said: Sequence[Event]) -> AnswerScore:
    return AnswerScore(
        nats=-math.fsum(one.logp for one in said),
        tokens=len(placed.tokens),
        size=placed.size,
        greedy=all(one.likeliest for one in said),
    )
