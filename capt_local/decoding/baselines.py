"""The published methods, for comparison: functions on the rows of logits of their models.

Each gives a normalised distribution, as it is published for generating and in a form for scoring
that gives every token some probability: an addition, since the published ones give 0 to most texts.
What the authors' code loses stays lost here (docs/method.md).

Tokens become strings as in `get_top_k_tokens` and `update_vocab` of UniTE (Yao et al. 2025), which
the authors of CAPT (Ronaghi et al. 2026) took over in their `proxy_tuning_client.py`; capt-local
itself aligns by bytes (`alignment`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from capt_local.decoding.combine import Candidates, Distribution, plausible
from capt_local.tokenization import FloatArray, IntArray, Row, Tokenize, TokenKind, Vocabulary


@dataclass(frozen=True, slots=True)
class Choices:
    """A normalised distribution over the tokens of the leading model, in nats.

    Attributes:
        tokens: in the order in which the method weighs them, so that the first of equals wins; a
            token may come more than once (UniTE: two strings that begin with it), shape (n,).
        logp: log-probability of each, shape (n,).
        outside: what any other token has over its log-probability under the leading model.
            -inf: such a token cannot come, as when generating. Finite: the form for scoring.
    """

    tokens: IntArray
    logp: FloatArray
    outside: float = -math.inf

    def merged(self) -> Choices:
        """The same distribution with each token once, ascending."""
        tokens, places = np.unique(self.tokens, return_inverse=True)
        logp = np.full(len(tokens), -np.inf)
        np.logaddexp.at(logp, places, self.logp)
        return Choices(tokens, logp, self.outside)

    def sharing(self, logits: Row) -> Choices:
        """The form for scoring in which the tokens share what the leading model gives to them.

        Every other token keeps its probability.
        """
        share = log_mass(log_softmax(logits)[self.tokens])
        return Choices(self.tokens, self.logp + share, outside=0.0)

    def over(self, row: Row) -> Distribution:
        """The distribution with the leading model's own row, without a contrast."""
        every, count = plausible(row, 0.0), len(self.tokens)
        rest = max(0.0, 1.0 - float(np.exp(every.logp[np.unique(self.tokens)]).sum()))
        own = Candidates(self.tokens, every.logp[self.tokens], rest, every.log_total)
        nothing, members = np.empty((0, count)), self.logp[None, :]
        return Distribution(own, np.zeros(count), self.logp, row, members, nothing, self.outside)


def log_softmax(logits: Row | FloatArray) -> FloatArray:
    """Log-probabilities over the whole row, in double precision; the same shape."""
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def log_mass(logp: FloatArray) -> float:
    """Log of the probability of several tokens together."""
    return float(np.logaddexp.reduce(logp))


def top(logits: Row, count: int) -> list[int]:
    """The `count` likeliest tokens, likeliest first, the lowest id of equals first.

    (`torch.topk`, which the published code uses, leaves the order of equals open.)
    """
    count = min(count, len(logits))
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    reach = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[reach], kind="stable")
    best: list[int] = reach[order[:count]].tolist()
    return best


def proxy_tuning(target: Row, expert: Row, base: Row, alpha: float = 1.0) -> Choices:
    """softmax(l_T + alpha * (l_E - l_A)) over the whole vocabulary; it generates and scores.

    The logits are over one vocabulary, shape (vocabulary,); alpha is published as 1.
    """
    moved = target.astype(np.float64) + alpha * (expert.astype(np.float64) - base)
    return Choices(np.arange(len(target), dtype=np.int32), log_softmax(moved))


def contrastive(
    expert: Row,
    base: Row,
    beta: float = 0.5,
    plausibility: float = 0.1,
    *,
    scoring: bool = False,
) -> Choices:
    """Softmax of (1 + beta) * l_E - beta * l_A on the tokens with p_E >= plausibility * max p_E.

    l are logits over one vocabulary; the expert leads, the base is the amateur, and the target
    takes no part. Formula and constants are those of O'Brien and Lewis (2023); the plausibility
    limit is that of Li et al. (2022), whose own score is logp_E - logp_A. For `scoring` see
    `Choices.sharing`.
    """
    # The cut is made in single precision, as in the papers' logits.
    least = expert.max() + np.float32(math.log(plausibility))
    tokens = np.flatnonzero(expert >= least).astype(np.int32)
    wide = expert[tokens].astype(np.float64), base[tokens].astype(np.float64)
    scores = (1.0 + beta) * wide[0] - beta * wide[1]
    made = Choices(tokens, scores - log_mass(scores))
    return made.sharing(expert) if scoring else made


def unite(
    strings: Sequence[TokenStrings],
    target: Row,
    expert: Row,
    k: int = 10,
    *,
    scoring: bool = False,
) -> Choices:
    """The mean of two softmaxes over the union of the strings of both models' top k.

    The published distribution has an entry for each string, the target's in order first. A string
    that is no token of the target emits its first sub-token there, and the expert reads on from
    that. `strings` are those of target and expert; for `scoring` see `Choices.sharing`.
    """
    own, other = (
        {each.key(token): token for token in top(row, k)}
        for each, row in zip(strings, (target, expert), strict=True)
    )
    union = {**own, **other}
    tokens, first = _entries(strings[0], target, own, union)
    _pieces, second = _entries(strings[1], expert, other, union)
    made = Choices(tokens, np.logaddexp(first, second) - np.log(2.0))
    return made.merged().sharing(target) if scoring else made


def _entries(
    strings: TokenStrings, logits: Row, own: Mapping[str, int], union: Mapping[str, int]
) -> tuple[IntArray, FloatArray]:
    """A model's piece for each string of the union, and the log-softmax of their logits.

    Where a byte-level model has no token for a string and the first sub-token is there already,
    the string gets the logit 0; a SentencePiece model gives it the sub-token's logit once more.
    """
    taken = set(own.values())
    tokens = np.empty(len(union), dtype=np.int32)
    values = np.empty(len(union), dtype=np.float32)
    for place, key in enumerate(union):
        token = own[key] if key in own else strings.piece(key)
        repeated = key not in own and not strings.spaced and token in taken
        taken.add(token)
        tokens[place] = token
        values[place] = 0.0 if repeated else logits[token]
    return tokens, log_softmax(values)


def paper_capt(
    strings: Sequence[TokenStrings],
    target: Row,
    expert: Row,
    base: Row,
    alpha: float = 1.0,
    k: int = 20,
    *,
    scoring: bool = False,
) -> Choices:
    """s(t) = logp_T(t) + alpha * (logp_E(m(t)) - logp_A(m(t))) over the target's top k.

    Log-probabilities are over each model's whole vocabulary; m(t) is `TokenStrings.piece`, which
    the published code looks up for expert and base apart. There is no floor, no plausibility limit
    and no event for the end of an answer. Published: alpha 1, k 20, and the softmax of s over the
    candidates in the target's order; nothing else can come.

    With `scoring`, other tokens keep the target's probability, uncontrasted, and all is divided by
    the sum over the vocabulary. `strings` are those of target, expert and base.
    """
    # Of two candidates with one key ("/n" and a newline) the less likely one overwrites the
    # other, in its place: a dictionary does here what it does in the published code.
    keys = {strings[0].key(token): token for token in top(target, k)}
    tokens = np.array(list(keys.values()), dtype=np.int32)
    own = log_softmax(target)[tokens]
    said = [
        log_softmax(row)[[each.piece(key) for key in keys]]
        for each, row in zip(strings[1:], (expert, base), strict=True)
    ]
    scores = own + alpha * (said[0] - said[1])
    if not scoring:
        return Choices(tokens, scores - log_mass(scores))
    rest = max(-math.expm1(log_mass(own)), 0.0)
    total = float(np.logaddexp(log_mass(scores), math.log(rest) if rest else -math.inf))
    return Choices(tokens, scores - total, -total).merged()


# The mean probability from which on two models agree, and below which a distribution is smooth.
_CONSENSUS = 0.5


def safe(
    strings: Sequence[TokenStrings],
    keeps_tokens: Callable[[int], bool],
    target: Row,
    expert: Row,
    *,
    scoring: bool = False,
) -> Choices | None:
    """SAFE: UniTE at the few positions that matter, elsewhere the target alone (Yun et al. 2026).

    "When to Ensemble", ICLR 2026, arXiv 2510.15346. Two models are ensembled only where their token
    boundaries agree (the expert's tokens of the text so far stay when the target's likeliest token
    follows) and where they do not agree already: their likeliest strings differ, and the mean of
    the probabilities that they give to the target's is at most 0.5. Where the ensemble is smooth
    (nothing above 0.5), a string takes over what its own beginnings have, and the string with most
    is emitted. Every step is decided by itself here; the authors verify drafts of the target
    several tokens at a time. They publish code, which was not at hand: see docs/method.md.

    Args:
        strings: of target and expert.
        keeps_tokens: whether the expert's tokens so far stay when this token of the target follows.
        target: logits.
        expert: logits.
        scoring: without the sharpening, which gives 0 to tokens.

    Returns:
        None for the target alone.
    """
    token, key = int(target.argmax()), strings[0].key(int(target.argmax()))
    if key == strings[1].key(int(expert.argmax())):
        return None
    own = math.exp(log_softmax(target)[token])
    theirs = math.exp(log_softmax(expert)[strings[1].piece(key)])
    if (own + theirs) / 2 > _CONSENSUS or not keeps_tokens(token):
        return None
    made = unite(strings, target, expert, scoring=scoring)
    shares = np.exp(made.logp)
    if scoring or shares.max() > _CONSENSUS:
        return made
    keys = [strings[0].key(int(token)) for token in made.tokens]
    begins = np.array([[whole.startswith(part) for part in keys] for whole in keys])
    totals = begins @ shares
    best = int(totals.argmax())
    moved = np.where(begins[best], 0.0, shares)
    moved[best] = totals[best]
    with np.errstate(divide="ignore"):
        return Choices(made.tokens, np.log(moved))


# A space inside a token, as SentencePiece and as byte-level BPE write it.
_MARK, _LETTER = "\u2581", "\u0120"
# A newline, likewise; and what the published code makes of both. (It means "\n".)
_NEWLINES, _SLASH_N = ("<0x0A>", "\u010a"), "/n"
# The published code takes this id for "not in the vocabulary", as in Llama-2 and Mistral.
_UNKNOWN = 0
# The letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2).
_PLAIN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_LETTERS = {byte: 256 + i for i, byte in enumerate(sorted({*range(256)} - _PLAIN))}


class TokenStrings:
    """A vocabulary as Transformers spells it, and the piece that stands for a foreign string.

    `key` is `convert_ids_to_tokens` and what the published code then replaces; `piece` is its
    lookup of a key that came from another model. Both stay strings all the way: no key is ever
    turned back into text, so byte-level letters reach a SentencePiece tokenizer as letters.

    Attributes:
        spaced: SentencePiece spelling (word mark, `<0x0A>` for bytes); else byte-level letters.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        self.spaced = bool((vocabulary.kinds == TokenKind.BYTE).any())
        self._vocabulary = vocabulary
        self._tokenize = tokenize
        self._pieces: dict[str, int] = {}

    def key(self, token: int) -> str:
        """The string under which a token is compared, for both spellings the same.

        A space is "Ġ" in both; a newline becomes the two characters "/n" in both, as published.
        """
        vocabulary = self._vocabulary
        string = self._spell(vocabulary.piece(token), int(vocabulary.kinds[token]))
        key = string.replace(_MARK, _LETTER)
        for newline in _NEWLINES:
            key = key.replace(newline, _SLASH_N)
        return key

    def piece(self, key: str) -> int:
        """m(t): the entry with the same string, else the first sub-token of the string.

        A SentencePiece tokenizer puts a word mark in front of what it splits; where that mark is a
        piece of its own it is passed over, where it is merged with the first letters it stays.
        """
        if key not in self._pieces:
            self._pieces[key] = self._find(key)
        return self._pieces[key]

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The token of each string, the lowest of equals."""
        pieces, kinds = self._vocabulary.pieces(), self._vocabulary.kinds.tolist()
        ids: dict[str, int] = {}
        for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
            ids.setdefault(self._spell(piece, kind), token)
        return ids

    def _find(self, key: str) -> int:
        string = key.replace(_LETTER, _MARK) if self.spaced else key
        space = self._ids.get(_MARK if self.spaced else _LETTER, _UNKNOWN)
        if not string:
            return space
        same = self._ids.get(string, _UNKNOWN)
        if same != _UNKNOWN:
            return same
        # Transformers' `tokenize` takes control tokens written out for what they are.
        tokens = self._tokenize(string.encode("utf-8", "replace"), special=True)
        passed_over = space if self.spaced else -1
        return next((token for token in tokens if token != passed_over), _UNKNOWN)

    def _spell(self, piece: bytes, kind: int) -> str:
        """What `convert_ids_to_tokens` gives: the vocabulary's own writing, not the text."""
        if kind == TokenKind.BYTE:
            return f"<0x{piece[0]:02X}>"
        if kind == TokenKind.NORMAL and not self.spaced:
            return piece.decode("latin-1").translate(_LETTERS)
        string = piece.decode("utf-8", "replace")
        return string.replace(" ", _MARK) if kind == TokenKind.NORMAL else string
