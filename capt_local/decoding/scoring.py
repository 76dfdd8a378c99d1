"""Log-likelihoods of known text and of given answers, and multiple choice by log-likelihood.

A known text is decoded like a draft that is always accepted: each model decodes the next tokens in
one batch, and each token's log-probability is taken from the distribution at its position.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from capt_local.decoding.baselines import log_mass
from capt_local.decoding.combine import Distribution
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.prompt_weights import Evidence, prefill
from capt_local.decoding.proxy import LogitsCache, context_after_prompt
from capt_local.errors import Cancelled, ContextOverflow, UnspellableText, UsageError
from capt_local.prompting.build import build_raw
from capt_local.prompting.messages import Prompt, Segment
from capt_local.tokenization import TextTokenizer, UnspellableByte, Vocabulary

Cancel = Callable[[], bool]
Tokenizers = Mapping[str, TextTokenizer]

# A token of the target may take a few tokens of a proxy: a window ends this many tokens early.
MARGIN = 32
_END = -1  # stands for "the answer ends here" among the tokens to score


@dataclass(frozen=True, slots=True)
class TextScore:
    """Log-likelihood of a text.

    Attributes:
        nats: -log p of the tokens.
        tokens: of the target.
        size: bytes of the text.
        windows: number of windows, each with an empty context, that the text was split into.
    """

    nats: float
    tokens: int
    size: int
    windows: int


def score_text(
    ensemble: Ensemble,
    tokenizers: Tokenizers,
    text: bytes,
    cancel: Cancel | None = None,
) -> TextScore:
    """Scores a text (UTF-8) from its beginning.

    Weights that are not fixed follow it: each token is predicted with those that the tokens before
    it give.

    Raises:
        Cancelled: `cancel`, which is asked at every token, said so.
        ContextOverflow: the context is too small for any window.
        UnspellableText: the vocabulary cannot spell the text.
    """
    role = ensemble.leader.role
    try:
        tokens = tokenizers[role].encode(text, start=True)
    except UnspellableByte as error:
        raise UnspellableText(role, error.byte) from None
    nats, windows, evidence = 0.0, 0, None
    for place, token in enumerate(tokens):
        if not place or ensemble.tokens_left <= MARGIN:
            prompts = empty_prompts(ensemble.models, tokenizers, first=not place)
            ensemble.start(prompts, MARGIN + 1, exact=False)
            windows += 1
            if ensemble.mixes and evidence is None:
                evidence = Evidence(len(ensemble.exponents), ensemble.options.forgetting)
        if evidence is not None:
            ensemble.weights = evidence.weights
        here = _distribution(ensemble, tokens[place:-1], cancel)
        nats -= here.token_logp(token)
        if evidence is not None:
            evidence.observe(here.gains(token))
        ensemble.advance(token)
    return TextScore(nats, len(tokens), len(text), windows)


def empty_prompts(
    models: Iterable[LogitsCache], tokenizers: Tokenizers, *, first: bool = True
) -> dict[str, Prompt]:
    """Prompts of one token (BOS) before a text that is scored from its beginning, by role.

    `first`: the beginning of the text follows, with the tokenizer's leading space, and not a
    later window of it.
    """
    prompts = {}
    for each in models:
        vocabulary = each.model.vocabulary
        # BOS, or for models without one the first end-of-generation token.
        token = vocabulary.bos if vocabulary.bos is not None else int(vocabulary.end_ids[0])
        leading_space = tokenizers[each.role].leading_space if first else b""
        prompts[each.role] = Prompt(
            (Segment((token,)),), starts_text=first, leading_space=leading_space
        )
    return prompts


def _distribution(ensemble: Ensemble, ahead: Sequence[int], cancel: Cancel | None) -> Distribution:
    if cancel is not None and cancel():
        raise Cancelled("The scoring was stopped.")
    ensemble.read_known_text(ahead)
    return ensemble.distribution()


@dataclass(frozen=True, slots=True)
class Event:
    """The score of a token, or of the end, under a distribution.

    Attributes:
        logp: log-probability, in nats.
        likeliest: whether it is the likeliest of all possible tokens.
    """

    logp: float
    likeliest: bool


def score_paths(
    ensemble: Ensemble,
    prompts: Mapping[str, Prompt],
    paths: Sequence[tuple[int, ...]],
    *,
    end: bool,
    prefix: bytes = b"",
    cancel: Cancel | None = None,
) -> list[list[Event]]:
    """Scores each token of some token sequences after a prompt, and with `end` the end of each.

    The prompt and common prefixes of the sequences are decoded once. The first token is scored
    given that it begins with the bytes `prefix`; `cancel` is called at every position.

    Raises:
        Cancelled: `cancel` returned true.
        ContextOverflow: the prompt does not fit.
    """
    wanted: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for place, token in enumerate((*path, _END) if end else path):
            wanted.setdefault(path[:place], set()).add(token)
    ensemble.start(prompts, exact=False)
    prefill(ensemble, prompts)
    begin, vocabulary = ensemble.save(), ensemble.leader.model.vocabulary
    known: dict[tuple[int, ...], dict[int, Event]] = {}
    for path in paths:
        ensemble.restore(begin)
        for place in range(len(path) + end):
            before = path[:place]
            if before not in known:
                ahead = path[place : len(path) - (not end)]
                here = _distribution(ensemble, ahead, cancel)
                known[before] = _events(here, wanted[before], vocabulary, b"" if place else prefix)
            if place < len(path):
                ensemble.advance(path[place])
    return [
        [known[path[:place]][token] for place, token in enumerate((*path, _END) if end else path)]
        for path in paths
    ]


def _events(
    here: Distribution, wanted: Iterable[int], vocabulary: Vocabulary, prefix: bytes
) -> dict[int, Event]:
    """The scores of the wanted tokens at one position."""
    likeliest, total = int(here.candidates.tokens[here.logp.argmax()]), 0.0
    if prefix:
        begins = [token for token, one in enumerate(vocabulary.pieces()) if one.startswith(prefix)]
        allowed = np.array([each for each in begins if vocabulary.is_text[each]], dtype=np.int32)
        found = here.token_logps(allowed)
        likeliest, total = int(allowed[found.argmax()]), log_mass(found)
    tokens = [token for token in wanted if token != _END]
    logps = here.token_logps(np.array(tokens, dtype=np.int32))
    events = {
        token: Event(float(logp) - total, token == likeliest)
        for token, logp in zip(tokens, logps, strict=True)
    }
    if _END in wanted:
        ends = here.token_logps(vocabulary.end_ids)
        events[_END] = Event(log_mass(ends), bool(vocabulary.is_end[likeliest]))
    return events


class ChoiceCriterion(StrEnum):
    """The log-likelihood that a choice is made by: total, per byte, or per token."""

    LIKELIHOOD = "likelihood"
    PER_BYTE = "per-byte"
    PER_TOKEN = "per-token"


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Log-likelihood of a given answer.

    Attributes:
        nats: -log p of the answer.
        tokens: of the target; the end is not counted.
        size: bytes of the answer.
        greedy: whether each token was the likeliest (the first one given the bytes of the prompt
            that it begins with), so that greedy decoding would generate the answer.
    """

    nats: float
    tokens: int
    size: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """The chosen one of several answers (ties: the first), and the score of each."""

    index: int
    scores: tuple[AnswerScore, ...]

    @property
    def logps(self) -> tuple[float, ...]:
        """Log-likelihood of each answer, in nats."""
        return tuple(-score.nats for score in self.scores)


class AnswerScorer:
    """Scores given answers to one prompt; `cancel` is called at every token."""

    def __init__(
        self,
        ensemble: Ensemble,
        tokenizers: Tokenizers,
        prompts: Mapping[str, Prompt],
        cancel: Cancel | None = None,
    ) -> None:
        self._ensemble = ensemble
        self._tokenizers = tokenizers
        self._prompts = prompts
        self._cancel = cancel

    def scores(self, answers: Sequence[bytes], *, end: bool = False) -> tuple[AnswerScore, ...]:
        """Log-likelihood of each answer's canonical tokens after the prompt.

        The mixture weights come from the prompt, as in generation. The prompt and common prefixes
        of the answers are decoded once.

        Args:
            answers: UTF-8, none of them empty.
            end: whether to add the log-probability that the answer ends (any end token).

        Raises:
            UsageError: an answer is empty or not UTF-8.
            UnspellableText: the vocabulary cannot spell an answer.
            ContextOverflow: prompt and answer do not fit; nothing was computed.
            Cancelled: `cancel` returned true.
        """
        places = [self._place(answer) for answer in answers]
        groups: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for number, placed in enumerate(places):
            key = (placed.prompts[self._ensemble.leader.role].tokens, placed.prefix)
            groups.setdefault(key, []).append(number)
        scores: dict[int, AnswerScore] = {}
        for numbers in groups.values():
            first = places[numbers[0]]
            paths = [places[number].tokens for number in numbers]
            found = score_paths(
                self._ensemble, first.prompts, paths, end=end, prefix=first.prefix,
                cancel=self._cancel,
            )  # fmt: skip
            for number, path, path_scores in zip(numbers, paths, found, strict=True):
                scores[number] = AnswerScore(
                    nats=-math.fsum(one.logp for one in path_scores),
                    tokens=len(path),
                    size=len(answers[number]),
                    greedy=all(one.likeliest for one in path_scores),
                )
        return tuple(scores[number] for number in range(len(answers)))

    def choose(
        self, choices: Sequence[bytes], how: ChoiceCriterion = ChoiceCriterion.LIKELIHOOD
    ) -> ChoiceScores:
        """Chooses one of several different answers.

        If one choice is a prefix of another, the ends of all are scored too: otherwise the shorter
        one would never be less likely.

        Raises:
            UsageError: there are no choices, or two are the same, or as for `scores`.
            ContextOverflow, Cancelled: see `scores`.
        """
        if not choices:
            raise UsageError("There are no choices.")
        if len(set(choices)) < len(choices):
            raise UsageError("Two choices are the same.")
        ordered = sorted(choices)  # a choice is directly followed by one that it is a prefix of
        nested = any(after.startswith(one) for one, after in itertools.pairwise(ordered))
        scores = self.scores(choices, end=nested)
        match how:
            case ChoiceCriterion.LIKELIHOOD:
                rates = [-score.nats for score in scores]
            case ChoiceCriterion.PER_BYTE:
                rates = [-score.nats / score.size for score in scores]
            case ChoiceCriterion.PER_TOKEN:
                rates = [-score.nats / score.tokens for score in scores]
        return ChoiceScores(max(range(len(rates)), key=rates.__getitem__), scores)

    def _place(self, answer: bytes) -> _AnswerTokens:
        """Tokenizes an answer after the prompt and checks that it fits."""
        if not answer:
            raise UsageError("An answer is empty.")
        try:
            answer.decode("utf-8")
        except UnicodeDecodeError as error:
            # The error itself holds the bytes.
            raise UsageError(f"An answer is not UTF-8 at byte {error.start}.") from None
        role = self._ensemble.leader.role
        try:
            placed = _placed(role, self._prompts, self._tokenizers, answer)
        except UnspellableByte as error:
            raise UnspellableText(role, error.byte) from None
        counts = {role: len(placed.prompts[role].tokens) + len(placed.tokens)}
        for other, prompt in self._prompts.items():
            if other != role:
                context = context_after_prompt(prompt, self._tokenizers[other])
                context.append(answer)
                counts[other] = len(context.tokens)
        limits = {each.role: each.model.context_limit for each in self._ensemble.models}
        if any(counts[each] > limit for each, limit in limits.items()):
            raise ContextOverflow(counts, min(limits.values()))
        return placed


class _AnswerTokens(NamedTuple):
    """The tokens of an answer after a prompt.

    Attributes:
        prompts: by role; raw text may lack its last bytes.
        prefix: these last bytes of the prompt, with which the first token begins.
        tokens: of the target, from the end of its prompt to the end of the answer.
    """

    prompts: Mapping[str, Prompt]
    prefix: bytes
    tokens: tuple[int, ...]


def _placed(
    role: str, prompts: Mapping[str, Prompt], tokenizers: Tokenizers, answer: bytes
) -> _AnswerTokens:
    """Tokenizes an answer after a prompt, in tokens of `role`.

    After a chat turn the answer is a text of its own. A raw prompt is continued, and its last word
    may extend into the answer: then the canonical tokens of the whole text have no boundary between
    them. So the whole text is tokenized. Tokens within the prompt are the prompt, and a token
    across the boundary is scored given the bytes of the prompt that it begins with.
    """
    own, tokenizer = prompts[role], tokenizers[role]
    if not own.continues_text:
        return _AnswerTokens(prompts, b"", tuple(tokenizer.encode(answer, start=own.starts_text)))
    text = own.segments[-1].text or b""
    tokens = tokenizer.encode(text + answer, start=True)
    ends = itertools.accumulate(len(tokenizer.vocabulary.piece(token)) for token in tokens)
    inside = [
        end - len(tokenizer.leading_space)
        for end in ends
        if end <= len(tokenizer.leading_space + text)
    ]
    if not inside or inside[-1] <= 0:
        # The first token covers all of the prompt: both are tokenized apart, as in generation.
        return _AnswerTokens(prompts, b"", tuple(tokenizer.encode(answer, start=False)))
    count, cut = len(inside), inside[-1]
    known = Segment(tuple(tokens[:count]), text[:cut], evidence=True)
    shorter = {role: dataclasses.replace(own, segments=(*own.segments[:-1], known))}
    for other, prompt in prompts.items():
        if other != role:
            same = cut == len(text)
            again = prompt if same else build_raw(text[:cut], tokenizers[other], role=other)
            shorter[other] = again
    return _AnswerTokens(shorter, text[cut:], tuple(tokens[count:]))


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
