"""Log-likelihoods of known text: all models read it in batches, not token by token.

The tokens of every model are known beforehand, also those of a proxy: at each target position it
stands at the canonical tokens of the text so far. Most of these are prefixes of the tokens of the
whole text; where the text so far ends inside a longer piece they are not, and a short tail is read
first and then dropped again. So each model reads a list of contexts in order, each given by how
many tokens it shares with the one before, and as many as follow one another go into one batch.

Rows of logits are large (49k to 262k numbers). They are read a block of positions at a time, and
what remains of a block is one number a token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from capt_local.alignment.context import CanonicalContext
from capt_local.alignment.fit import AnyAlignment
from capt_local.alignment.projection import Back, CandidateQuery, FloatArray, Probabilities, View
from capt_local.decoding.baselines import log_mass
from capt_local.decoding.combine import Distribution
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.prompt_weights import Evidence, prefill
from capt_local.decoding.proxy import LogitsCache, Proxy, Rows, common_length, softmax
from capt_local.errors import Cancelled, ModelError
from capt_local.prompting.messages import Prompt, Segment
from capt_local.tokenization.tokenizer import TextTokenizer
from capt_local.tokenization.vocabulary import IntArray, Vocabulary

# A word of the target may take a few tokens of a proxy; a window ends before that can overflow.
MARGIN = 32
# Numbers of one model's rows in a block of positions: 4 million are 16 MB.
_BLOCK_NUMBERS = 4_000_000
_KEPT_ROWS = 8  # rows behind a position that are not read again when the text goes back a little


class Move(NamedTuple):
    """One position of a tree of known tokens behind a prompt, parents first.

    Attributes:
        depth: tokens behind the prompt.
        token: the last of them; None where there is none.
        forks: whether more than one child follows, so that the position is returned to.
    """

    depth: int
    token: int | None
    forks: bool = False


class _Context(NamedTuple):
    """What one model has read at a position: a change of the context before.

    Attributes:
        keep: tokens shared with the context before.
        added: tokens behind them.
        rests: of a proxy, bytes of its last token, of the last two, ... that may be healed.
        text: of a proxy whose rule asks for boundaries, its tokens there; else None.
    """

    keep: int
    added: list[int]
    rests: list[bytes]
    text: _ProxyText | None = None


class _Position(NamedTuple):
    """A position in all models, the leading model first."""

    start: bool
    contexts: list[_Context]


class KnownText:
    """Reads known tokens behind a prompt and gives the distribution at each position.

    Args:
        ensemble: configured; its models stand wherever they like.
        prompts: by role.
        cancel: asked at every position.

    Attributes:
        weights: of the mixture; may be changed between two positions.

    Raises:
        ContextOverflow: the prompt does not fit.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        prompts: Mapping[str, Prompt],
        cancel: Callable[[], bool] | None = None,
        reserve: int = 1,
    ) -> None:
        """Decodes nothing yet."""
        ensemble.start(prompts, reserve)
        self._ensemble = ensemble
        self._proxies = ensemble.proxies
        self._prompts = prompts
        self._cancel = cancel or (lambda: False)
        self.weights: FloatArray = ensemble.weights

    def prefill(self) -> None:
        """Decodes the prompt in all models and takes the weights from it, where they are open."""
        evidence = prefill(self._ensemble, self._prompts)
        if evidence is not None:
            self.weights = evidence.weights

    def read(self, moves: Iterable[Move], margin: int = 0) -> Iterator[Distribution]:
        """The distribution at each position, in order; valid until the next one.

        Args:
            moves: the first is the end of the prompt.
            margin: the reading ends where a context has no more room than this; 0: it never does.

        Raises:
            Cancelled: `cancel` said so.
        """
        ensemble = self._ensemble
        ensemble.sync()
        leader = _Reader(ensemble.leader, keeps_logits=True)
        leader.start(ensemble.tokens, {len(ensemble.tokens): ensemble.leader_row()})
        readers = [_ProxyReader(each) for each in self._proxies]
        widest = max(len(each.model.vocabulary) for each in ensemble.models)
        size = max(4, min(ensemble.leader.model.max_rows, _BLOCK_NUMBERS // widest))
        plan = self._plan(moves, margin)
        while block := list(islice(plan, size)):
            heard = [
                list(reader.read([each.contexts[place] for each in block]))
                for place, reader in enumerate(readers, start=1)
            ]
            rows = leader.rows([each.contexts[0] for each in block])
            for number, (position, row) in enumerate(zip(block, rows, strict=True)):
                if self._cancel():
                    raise Cancelled("The scoring was stopped.")
                followers: list[Any] = [each[number] for each in heard]
                yield ensemble.rule.distribution(row, followers, self.weights, start=position.start)

    def _plan(self, moves: Iterable[Move], margin: int) -> Iterator[_Position]:
        """Positions, worked out by the tokenizers alone."""
        ensemble = self._ensemble
        limits = [each.model.context_limit for each in ensemble.models]
        behind, vocabulary = len(ensemble.tokens), ensemble.leader.model.vocabulary
        lead = self._prompts[ensemble.leader.role].lead
        now = [_ProxyText(each) for each in self._proxies]
        saved: dict[int, list[_ProxyText]] = {}
        for count, (depth, token, forks) in enumerate(moves):
            if token is None:
                contexts = [_Context(behind, [], [])]
                contexts += [
                    _Context(len(each.tokens), [], each.rests, each.snapshot()) for each in now
                ]
            else:
                before = [each.tokens for each in now]
                returned = depth - 1 in saved
                if returned:
                    now = [each.fork() for each in saved[depth - 1]]
                piece = vocabulary.text((token,)).removeprefix(lead if depth == 1 else b"")
                contexts = [_Context(behind + depth - 1, [token], [])]
                for proxy, old in zip(now, before, strict=True):
                    keep = proxy.append(token, piece)
                    if returned:
                        keep = common_length(old, proxy.tokens)
                    contexts.append(
                        _Context(keep, proxy.tokens[keep:], proxy.rests, proxy.snapshot())
                    )
            if margin and count:
                used = [behind + depth, *(len(each.tokens) for each in now)]
                if min(a - b for a, b in zip(limits, used, strict=True)) <= margin:
                    return
            for deeper in [each for each in saved if each >= depth]:
                del saved[deeper]  # of a branch that is done
            if forks:
                saved[depth] = [each.fork() for each in now]
            yield _Position(bool(lead) and depth == 0, contexts)


class _ProxyText:
    """The canonical tokens of a proxy for the prompt and what follows."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._context: CanonicalContext = proxy.context()

    @property
    def tokens(self) -> list[int]:
        return self._context.tokens

    @property
    def rests(self) -> list[bytes]:
        return self._context.rests(self._proxy.alignment.depth)

    def fork(self) -> _ProxyText:
        other = copy.copy(self)
        other._context = copy.copy(self._context)
        other._context.tokens = list(self._context.tokens)
        return other

    def snapshot(self) -> _ProxyText | None:
        """These tokens as they are now, for a published method, which may ask for boundaries."""
        return self.fork() if self._proxy.keeps_logits else None

    def keeps_tokens(self, text: bytes) -> bool:
        """See `combine.Follower.keeps_tokens`; the tokens change."""
        size = len(self.tokens)
        return self._proxy.alignment.follows_tokens or self._context.append(text) >= size

    def append(self, token: int, piece: bytes) -> int:
        """Goes one token of the leading model on; how many tokens stayed."""
        if self._proxy.alignment.follows_tokens:
            self._context.tokens.append(token)
            return len(self._context.tokens) - 1
        if not piece:
            return len(self._context.tokens)
        same = self._context.append(piece)
        if self._context.unseen:
            self._proxy.tell_unseen()
        return same


class _Reader:
    """Reads the rows of one model along contexts that change a little each time.

    Args:
        cached: the model and what its KV cache holds.
        keeps_logits: rows as llama.cpp gives them, views that the next batch overwrites; else
            probabilities.
    """

    def __init__(self, cached: LogitsCache, *, keeps_logits: bool) -> None:
        self._cached = cached
        self._logits = keeps_logits
        self._path: list[int] = []
        self._known: dict[int, Rows] = {}

    @property
    def size(self) -> int:
        """Tokens of the present context."""
        return len(self._path)

    def start(self, tokens: Sequence[int], known: Mapping[int, Rows]) -> None:
        """Begins behind a prompt of which some rows are there, by the tokens that they follow."""
        self._path, self._known = list(tokens), dict(known)

    def rows(self, contexts: Sequence[_Context]) -> Iterator[Rows]:
        """The row after each context."""
        for _ in self.walk(contexts):
            yield self._known[len(self._path)]

    def walk(self, contexts: Sequence[_Context]) -> Iterator[_Context]:
        """Goes to each context in turn and sees to it that its rows are there."""
        for number, context in enumerate(contexts):
            self._go(context)
            size = len(self._path)
            for count in range(size - len(context.rests), size + 1):
                if count not in self._known:
                    self._decode(count, contexts[number + 1 :])
                    break
            yield context

    def row(self, count: int) -> Rows:
        """What follows the first `count` tokens of the present context."""
        return self._known[count]

    def token(self, place: int) -> int:
        """A token of the present context."""
        return self._path[place]

    def _go(self, context: _Context) -> None:
        if context.keep < len(self._path):
            del self._path[context.keep :]
            self._known = {at: row for at, row in self._known.items() if at <= context.keep}
        self._path += context.added

    def _decode(self, first: int, later: Sequence[_Context]) -> None:
        """Rows after `first` tokens and each further one, also of contexts that only go on."""
        path, most = list(self._path), self._cached.model.max_rows
        for context in later:
            longer = len(path) + len(context.added) - first + 1
            if context.keep != len(path) or longer > most:
                break
            path += context.added
        cached = self._cached
        cached.rewind(min(common_length(cached.tokens, path), first - 1))
        found = cached.extend(path[len(cached.tokens) :], len(path) - first + 1)
        if self._logits:
            self._known = dict(enumerate(found, start=first))
            return
        oldest = first - _KEPT_ROWS
        self._known = {at: row for at, row in self._known.items() if at >= oldest}
        self._known.update(enumerate(map(softmax, found), start=first))


class _ProxyReader:
    """The same for a proxy, which is asked for probabilities of the leading model's tokens."""

    def __init__(self, proxy: Proxy) -> None:
        self._alignment = proxy.alignment
        self._reader = _Reader(proxy.cache, keeps_logits=proxy.keeps_logits)
        self._keeps_logits = proxy.keeps_logits
        known = {len(proxy.tokens): proxy.logits} if proxy.keeps_logits else proxy.rows()
        self._reader.start(proxy.tokens, known)

    def read(self, contexts: Sequence[_Context]) -> Iterator[_Heard]:
        """What it says at each context."""
        reader = self._reader
        for context in reader.walk(contexts):
            size = reader.size
            if self._keeps_logits:
                yield _Heard(self._alignment, View(reader.row(size).copy()), context.text)
                continue
            back = [
                Back(reader.row(size - number), reader.token(size - number), rest)
                for number, rest in enumerate(context.rests, start=1)
            ]
            yield _Heard(self._alignment, View(reader.row(size), back))


@dataclass(slots=True)
class _Heard:
    """A proxy at one position, for `Rule.distribution`."""

    alignment: AnyAlignment
    view: View
    text: _ProxyText | None = None

    def keeps_tokens(self, text: bytes) -> bool:
        assert self.text is not None
        return self.text.fork().keeps_tokens(text)

    @property
    def row(self) -> Probabilities:
        return self.view.row

    @property
    def logits(self) -> Rows:
        return self.view.row

    def probability(self, question: CandidateQuery[Any]) -> FloatArray:
        return self.alignment.probability(question, self.view)


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
    tokenizers: Mapping[str, TextTokenizer],
    text: bytes,
    evidence: Evidence | None = None,
    cancel: Callable[[], bool] | None = None,
) -> TextScore:
    """Scores a text from its beginning.

    A text that is longer than the context is scored in windows, each begun afresh.

    Args:
        ensemble: of which the target's tokens are scored.
        tokenizers: of all its models, by role.
        text: UTF-8.
        evidence: if given, the weights follow the text: each token is predicted
            with the weights from the tokens before it.
        cancel: asked at every token.

    Raises:
        Cancelled: `cancel` said so.
        ContextOverflow: the context is too small for any window.
        ModelError: the vocabulary cannot spell the text.
    """
    role = ensemble.leader.role
    try:
        tokens = tokenizers[role].encode(text, start=True)
    except ValueError:
        raise ModelError(
            f"The vocabulary of the {role} cannot spell every byte of the text."
        ) from None
    nats, windows, place = 0.0, 0, 0
    while place < len(tokens):
        prompts = opening(ensemble.models, tokenizers, first=place == 0)
        known = KnownText(ensemble, prompts, cancel, reserve=MARGIN + 1)
        left = tokens[place:]
        if evidence is not None:
            known.weights = evidence.weights
        for token, here in zip(left, known.read(_chain(left), MARGIN), strict=False):
            nats -= here.token_logp(token)
            if evidence is not None:
                evidence.observe(here.gains(token))
                known.weights = evidence.weights
            place += 1
        windows += 1
    return TextScore(nats, len(tokens), len(text), windows)


def _chain(tokens: Sequence[int]) -> Iterator[Move]:
    """The positions before each of some tokens."""
    yield Move(0, None)
    for depth, token in enumerate(tokens[:-1], start=1):
        yield Move(depth, token)


def opening(
    models: Iterable[LogitsCache], tokenizers: Mapping[str, TextTokenizer], *, first: bool = True
) -> dict[str, Prompt]:
    """What stands in front of a text: prompts of one token, by role.

    Args:
        models: that read the text.
        tokenizers: by role.
        first: whether the text itself begins there, with the space that some tokenizers put in
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


@dataclass(frozen=True, slots=True)
class Event:
    """What a distribution gives to a token, or to the end.

    Attributes:
        logp: log-probability, in nats.
        likeliest: whether nothing else that might have come is likelier.
    """

    logp: float
    likeliest: bool


@dataclass(slots=True)
class _Node:
    """A position in the tree: where tokens lead, what they were given, and what the end was."""

    children: dict[int, _Node] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    ends: bool = False
    end: Event | None = None


def score_paths(
    ensemble: Ensemble,
    prompts: Mapping[str, Prompt],
    paths: Iterable[tuple[int, ...]],
    *,
    end: bool,
    given: bytes = b"",
    cancel: Callable[[], bool] | None = None,
) -> list[list[Event]]:
    """What is given to each token of some lists behind a prompt, and to the end behind each.

    The prompt is decoded once, and so is what the lists have in common at their beginnings.

    Args:
        ensemble: configured.
        prompts: by role.
        paths: tokens of the leading model.
        end: whether the end behind each list is wanted.
        given: bytes that the first token begins with, whatever it is.
        cancel: asked at every position.

    Raises:
        Cancelled: `cancel` said so.
    """
    paths, root = list(paths), _Node()
    for path in paths:
        node = root
        for token in path:
            node = node.children.setdefault(token, _Node())
        node.ends = end
    known = KnownText(ensemble, prompts, cancel)
    known.prefill()
    places = list(_places(root))
    distributions = known.read(move for move, _ in places)
    for (move, node), here in zip(places, distributions, strict=True):
        _fill(node, here, ensemble.leader.model.vocabulary, b"" if move.depth else given)
    return [_collected(root, path, end=end) for path in paths]


def _places(root: _Node) -> Iterator[tuple[Move, _Node]]:
    """The positions at which something is wanted, parents first, one branch after the other."""
    waiting: list[tuple[_Node, int, int | None]] = [(root, 0, None)]
    while waiting:
        node, depth, token = waiting.pop()
        inner = [(t, n) for t, n in node.children.items() if n.children or n.ends]
        yield Move(depth, token, forks=len(inner) > 1), node
        waiting += [(child, depth + 1, t) for t, child in reversed(inner)]


def _fill(node: _Node, here: Distribution, vocabulary: Vocabulary, given: bytes) -> None:
    """Notes everything that is wanted at one position."""
    likeliest, total = int(here.candidates.tokens[here.logp.argmax()]), 0.0
    if given:
        allowed = _beginning_with(given, vocabulary)
        found = logps(here, allowed)
        likeliest, total = int(allowed[found.argmax()]), log_mass(found)
    wanted = np.array(list(node.children), dtype=np.int32)
    if len(wanted):
        for token, logp in zip(wanted.tolist(), logps(here, wanted), strict=True):
            node.events[token] = Event(float(logp) - total, token == likeliest)
    if node.ends:
        ends = logps(here, vocabulary.end_ids)
        node.end = Event(log_mass(ends), bool(vocabulary.is_end[likeliest]))


def logps(here: Distribution, tokens: IntArray) -> FloatArray:
    """Log-probabilities of any tokens under a distribution with ascending candidates, (n,)."""
    own = here.candidates
    places = np.minimum(np.searchsorted(own.tokens, tokens), len(own.tokens) - 1)
    inside = own.tokens[places] == tokens
    result: FloatArray = here.row[tokens].astype(np.float64) - own.log_total + here.outside
    result[inside] = here.logp[places[inside]]
    return result


def _beginning_with(given: bytes, vocabulary: Vocabulary) -> IntArray:
    """The text tokens that begin with these bytes."""
    pieces = enumerate(vocabulary.pieces())
    found = [token for token, piece in pieces if piece.startswith(given)]
    return np.array([token for token in found if vocabulary.is_text[token]], dtype=np.int32)


def _collected(root: _Node, path: tuple[int, ...], *, end: bool) -> list[Event]:
    """What was noted along one list of tokens."""
    node, found = root, []
    for token in path:
        found.append(node.events[token])
        node = node.children[token]
    if end:
        assert node.end is not None
        found.append(node.end)
    return found
