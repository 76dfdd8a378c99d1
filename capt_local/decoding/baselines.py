"""The published methods, for comparison: functions on the rows of logits of their models.

Each returns a normalised distribution: as published, for generating, and in a variant for scoring
that gives every token some probability (our addition, as the published ones give most texts 0).
Information that the authors' code loses is lost here too (docs/method.md).

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
        tokens: in the method's own order, which breaks ties; a token may occur more than once
            (UniTE: two strings with the same first sub-token), shape (n,).
        logp: log-probability of each, shape (n,).
        outside: added to the leading model's log-probability of any other token. -inf: such tokens
            have probability 0, as in generation. Finite: the variant for scoring.
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
        """The variant for scoring: the tokens share the leading model's probability of them all.

        Every other token keeps the leading model's probability.
        """
        share = log_mass(log_softmax(logits)[self.tokens])
        return Choices(self.tokens, self.logp + share, outside=0.0)

    def over(self, row: Row) -> Distribution:
        """As a `Distribution` on the leading model's logits, with a contrast of 0."""
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
    # The limit is computed in single precision, as in the papers' code.
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
    that is no token of the target emits its first sub-token, and the expert then continues after
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

    A string without a token gets the logit of its first sub-token; but in a byte-level model 0 if
    that sub-token is in the list already (a SentencePiece model uses its logit again).
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
    candidates in the target's order; all other tokens have probability 0.

    With `scoring`, other tokens have the target's probability, without contrast, and the result is
    normalised over the vocabulary. `strings` are those of target, expert and base.
    """
    # Of two candidates with the same key ("/n" and a newline) the less likely one replaces the
    # other at its position, as the dictionary in the published code does.
    keys = {strings[0].key(token): token for token in top(target, k)}
    tokens = np.array(list(keys.values()), dtype=np.int32)
    own = log_softmax(target)[tokens]
    proxy_logps = [
        log_softmax(row)[[each.piece(key) for key in keys]]
        for each, row in zip(strings[1:], (expert, base), strict=True)
    ]
    scores = own + alpha * (proxy_logps[0] - proxy_logps[1])
    if not scoring:
        return Choices(tokens, scores - log_mass(scores))
    rest = max(-math.expm1(log_mass(own)), 0.0)
    total = float(np.logaddexp(log_mass(scores), math.log(rest) if rest else -math.inf))
    return Choices(tokens, scores - total, -total).merged()


# Above this mean probability two models agree; below this maximum a distribution is smooth.
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
    (nothing above 0.5), a string gets the probability of all strings that are its prefixes, and the
    most probable one is emitted. Each step is decided by itself here; the authors verify drafts of
    the target several tokens at a time. Their code was not available to us: see docs/method.md.

    Args:
        strings: of target and expert.
        keeps_tokens: whether this token of the target leaves the expert's tokens so far unchanged.
        target: logits.
        expert: logits.
        scoring: omit the sharpening, which gives some tokens probability 0.

    Returns:
        The distribution; None where the target alone is used.
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
# The id that the published code uses for "not in the vocabulary", as in Llama-2 and Mistral.
_UNKNOWN = 0
# The letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2).
_PLAIN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_LETTERS = {byte: 256 + i for i, byte in enumerate(sorted({*range(256)} - _PLAIN))}


class TokenStrings:
    """A vocabulary as Transformers spells it, and the token for a string of another model.

    `key` is `convert_ids_to_tokens` with the replacements of the published code; `piece` is its
    lookup of a key from another model. As published, keys are never decoded to text, so that
    byte-level letters such as "\u0120" reach a SentencePiece tokenizer as letters.

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
        """m(t): the token with the same string, else the first sub-token of the string.

        A SentencePiece tokenizer puts a word mark before the text it splits; if the mark is a token
        by itself it is skipped, if it is merged with the first letters it is kept.
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
        # Transformers' `tokenize` parses the names of control tokens, so this does too.
        tokens = self._tokenize(string.encode("utf-8", "replace"), special=True)
        passed_over = space if self.spaced else -1
        return next((token for token in tokens if token != passed_over), _UNKNOWN)

    def _spell(self, piece: bytes, kind: int) -> str:
        """The result of `convert_ids_to_tokens`: the vocabulary's own spelling, not the text."""
        if kind == TokenKind.BYTE:
            return f"<0x{piece[0]:02X}>"
        if kind == TokenKind.NORMAL and not self.spaced:
            return piece.decode("latin-1").translate(_LETTERS)
        string = piece.decode("utf-8", "replace")
        return string.replace(" ", _MARK) if kind == TokenKind.NORMAL else string
