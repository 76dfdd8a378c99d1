"""Log-likelihoods of known text and of given answers, and which of several answers is chosen.

A known text is a draft that is always right: the models read the next tokens in one batch each,
and each token is then looked up in the distribution at its place, as an answer is generated.
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
from capt_local.decoding.proxy import LogitsCache, context_behind
from capt_local.errors import Cancelled, ContextOverflow, UnspellableText, UsageError
from capt_local.prompting.build import build_raw
from capt_local.prompting.messages import Prompt, Segment
from capt_local.tokenization import TextTokenizer, UnspellableByte, Vocabulary

Cancel = Callable[[], bool]
Tokenizers = Mapping[str, TextTokenizer]

# A word of the target may take a few tokens of a proxy; a window ends before that can overflow.
MARGIN = 32
_END = -1  # among the tokens that are wanted at a position


@dataclass(frozen=True, slots=True)
class TextScore:
    """Log-likelihood of a text.

    Attributes:
        nats: -log p of the tokens.
        tokens: of the target.
        size: bytes of the text.
        windows: how often the text was begun afresh because the context was full.
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
            prompts = opening(ensemble.models, tokenizers, first=not place)
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


def opening(
    models: Iterable[LogitsCache], tokenizers: Tokenizers, *, first: bool = True
) -> dict[str, Prompt]:
    """What stands in front of a text: prompts of one token, by role.

    `first` is whether the text itself begins there, with the space that some tokenizers put in
    front, rather than a window of it.
    """
    prompts = {}
    for each in models:
        vocabulary = each.model.vocabulary
        # BOS, or for models without one what ends a document.
        token = vocabulary.bos if vocabulary.bos is not None else int(vocabulary.end_ids[0])
        lead = tokenizers[each.role].lead if first else b""
        prompts[each.role] = Prompt((Segment((token,)),), starts_fresh=first, lead=lead)
    return prompts


def _distribution(ensemble: Ensemble, ahead: Sequence[int], cancel: Cancel | None) -> Distribution:
    if cancel is not None and cancel():
        raise Cancelled("The scoring was stopped.")
    ensemble.read_known(ahead)
    return ensemble.distribution()


@dataclass(frozen=True, slots=True)
class Event:
    """What a distribution gives to a token, or to the end.

    Attributes:
        logp: log-probability, in nats.
        likeliest: whether nothing else that might have come is likelier.
    """

    logp: float
    likeliest: bool


def score_paths(
    ensemble: Ensemble,
    prompts: Mapping[str, Prompt],
    paths: Sequence[tuple[int, ...]],
    *,
    end: bool,
    given: bytes = b"",
    cancel: Cancel | None = None,
) -> list[list[Event]]:
    """What is given to each token of some lists behind a prompt, and with `end` to the end of each.

    The prompt is decoded once, and so is what the lists have in common at their beginnings.
    `given` are bytes that the first token begins with, whatever it is; `cancel` is asked at every
    position.

    Raises:
        Cancelled: `cancel` said so.
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
                known[before] = _events(here, wanted[before], vocabulary, b"" if place else given)
            if place < len(path):
                ensemble.advance(path[place])
    return [
        [known[path[:place]][token] for place, token in enumerate((*path, _END) if end else path)]
        for path in paths
    ]


def _events(
    here: Distribution, wanted: Iterable[int], vocabulary: Vocabulary, given: bytes
) -> dict[int, Event]:
    """Everything that is wanted at one position."""
    likeliest, total = int(here.candidates.tokens[here.logp.argmax()]), 0.0
    if given:
        begins = [token for token, one in enumerate(vocabulary.pieces()) if one.startswith(given)]
        allowed = np.array([each for each in begins if vocabulary.is_text[each]], dtype=np.int32)
        found = here.token_logps(allowed)
        likeliest, total = int(allowed[found.argmax()]), log_mass(found)
    tokens = [token for token in wanted if token != _END]
    said = here.token_logps(np.array(tokens, dtype=np.int32))
    events = {
        token: Event(float(logp) - total, token == likeliest)
        for token, logp in zip(tokens, said, strict=True)
    }
    if _END in wanted:
        ends = here.token_logps(vocabulary.end_ids)
        events[_END] = Event(log_mass(ends), bool(vocabulary.is_end[likeliest]))
    return events


class Choosing(StrEnum):
    """By which log-likelihood one of several answers is chosen: whole, per byte, or per token."""

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
        greedy: whether each token was the likeliest (of those that begin with the bytes of the
            prompt that it goes on from), so that generating would have given the answer.
    """

    nats: float
    tokens: int
    size: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of several answers: the index of the first of equals, and the score of each."""

    index: int
    scores: tuple[AnswerScore, ...]

    @property
    def logps(self) -> tuple[float, ...]:
        """Log-likelihood of each answer, in nats."""
        return tuple(-score.nats for score in self.scores)


class Answers:
    """Judges given answers to one prompt; `cancel` is asked at every token."""

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
        """Log-likelihood of each answer in the target's tokens, canonical behind the prompt.

        The weights of the contrast come from the prompt, as when generating. The prompt, and what
        answers have in common, is decoded once.

        Args:
            answers: UTF-8, none of them empty.
            end: whether it counts that the answer ends there: any end token.

        Raises:
            UsageError: an answer is empty or not UTF-8.
            UnspellableText: the vocabulary cannot spell an answer.
            ContextOverflow: prompt and answer do not fit; nothing was computed.
            Cancelled: `cancel` said so.
        """
        places = [self._place(answer) for answer in answers]
        groups: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for number, placed in enumerate(places):
            key = (placed.prompts[self._ensemble.leader.role].tokens, placed.given)
            groups.setdefault(key, []).append(number)
        scores: dict[int, AnswerScore] = {}
        for numbers in groups.values():
            first = places[numbers[0]]
            paths = [places[number].tokens for number in numbers]
            found = score_paths(
                self._ensemble, first.prompts, paths, end=end, given=first.given,
                cancel=self._cancel,
            )  # fmt: skip
            for number, path, said in zip(numbers, paths, found, strict=True):
                scores[number] = AnswerScore(
                    nats=-math.fsum(one.logp for one in said),
                    tokens=len(path),
                    size=len(answers[number]),
                    greedy=all(one.likeliest for one in said),
                )
        return tuple(scores[number] for number in range(len(answers)))

    def choose(self, choices: Sequence[bytes], how: Choosing = Choosing.LIKELIHOOD) -> Chosen:
        """Chooses one of several different answers.

        The end of an answer counts where one choice is the beginning of another: without its end
        the shorter one is never less likely.

        Raises:
            UsageError: there are no choices, or two are the same, or as for `scores`.
            ContextOverflow, Cancelled: see `scores`.
        """
        if not choices:
            raise UsageError("There are no choices.")
        if len(set(choices)) < len(choices):
            raise UsageError("Two choices are the same.")
        ordered = sorted(choices)  # then what begins with a choice stands right behind it
        nested = any(after.startswith(one) for one, after in itertools.pairwise(ordered))
        scores = self.scores(choices, end=nested)
        match how:
            case Choosing.LIKELIHOOD:
                rates = [-score.nats for score in scores]
            case Choosing.PER_BYTE:
                rates = [-score.nats / score.size for score in scores]
            case Choosing.PER_TOKEN:
                rates = [-score.nats / score.tokens for score in scores]
        return Chosen(max(range(len(rates)), key=rates.__getitem__), scores)

    def _place(self, answer: bytes) -> _Placed:
        """The tokens of an answer behind the prompt, known to fit."""
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
                context = context_behind(prompt, self._tokenizers[other])
                context.append(answer)
                counts[other] = len(context.tokens)
        limits = {each.role: each.model.context_limit for each in self._ensemble.models}
        if any(counts[each] > limit for each, limit in limits.items()):
            raise ContextOverflow(counts, min(limits.values()))
        return placed


class _Placed(NamedTuple):
    """A given answer behind a prompt.

    Attributes:
        prompts: by role; of raw text perhaps without its last bytes.
        given: these last bytes, which the first token begins with.
        tokens: of the target, from the end of its prompt to the end of the answer.
    """

    prompts: Mapping[str, Prompt]
    given: bytes
    tokens: tuple[int, ...]


def _placed(
    role: str, prompts: Mapping[str, Prompt], tokenizers: Tokenizers, answer: bytes
) -> _Placed:
    """Where a prompt ends and a given answer begins, in tokens of `role`.

    After a turn the answer begins a text of its own. Raw text goes on, and its last word may go on
    in the answer: then the canonical tokens of the whole have no boundary where the answer begins.
    So the whole is tokenized. Tokens that lie in the prompt are the prompt, and the token that
    straddles the boundary is scored given the bytes of the prompt that it begins with.
    """
    own, tokenizer = prompts[role], tokenizers[role]
    if not own.goes_on:
        return _Placed(prompts, b"", tuple(tokenizer.encode(answer, start=own.starts_fresh)))
    text = own.segments[-1].text or b""
    tokens = tokenizer.encode(text + answer, start=True)
    ends = itertools.accumulate(len(tokenizer.vocabulary.piece(token)) for token in tokens)
    inside = [end - len(tokenizer.lead) for end in ends if end <= len(tokenizer.lead + text)]
    if not inside or inside[-1] <= 0:
        # One word from the very beginning: its parts are scored as generating makes them.
        return _Placed(prompts, b"", tuple(tokenizer.encode(answer, start=False)))
    count, cut = len(inside), inside[-1]
    known = Segment(tuple(tokens[:count]), text[:cut], evidence=True)
    shorter = {role: dataclasses.replace(own, segments=(*own.segments[:-1], known))}
    for other, prompt in prompts.items():
        if other != role:
            same = cut == len(text)
            again = prompt if same else build_raw(text[:cut], tokenizers[other], role=other)
            shorter[other] = again
    return _Placed(shorter, text[cut:], tuple(tokens[count:]))


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
