"""A model that follows a text, and the rows of logits behind it: `LogitsCache` owns both.

A `LogitsCache` brings one model to a text, reads what follows, and knows which rows it has read
already (also those behind a draft). A `Proxy` is a cache that stands at the canonical tokens of a
text that grows in the target's tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from capt_local.alignment import Alignment, Back, CandidateQuery, CanonicalContext
from capt_local.decoding.combine import Candidates, softmax
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import FloatArray, Row, Rows, TextTokenizer, Vocabulary, common_length

# Rows of a prompt that lie this close together are read in one batch, the ones between them for
# nothing: a batch more would cost more than a few rows.
_GAP = 8
# Rows behind a text that are kept: healing needs a few, and some more save decoding tokens again
# when a proxy's last tokens change over a short word.
_KEPT_ROWS = 8
# Of a text without a space the last tokens alone are taken for those that may change.
_LONGEST_TAIL = 12


class LogitsCache:
    """A model, the tokens in its KV cache, and the rows that follow them.

    Args:
        role: "target", "expert" or "base", for messages.
        model: the model; nobody else may move it.

    Attributes:
        tokens: what the KV cache holds, which may be more than the text; do not change it.
        decoded: tokens decoded so far.
        passes: calls that decoded them.
        notices: what the user should know, each once.
        exact: whether rows behind a text have the bits of tokens that are decoded one by one; else
            several tokens come in batches as large as can be, as for a text that is known.
    """

    def __init__(self, role: str, model: Model) -> None:
        self.role = role
        self.model = model
        self.tokens: list[int] = []
        self.decoded = 0
        self.passes = 0
        self.notices: list[str] = []
        self.exact = True
        self._made: Callable[[Rows], Row] | None = None
        self._path: list[int] = []  # the text that the rows belong to
        self._rows: dict[int, Row] = {}  # by how many of its tokens they follow

    def keep_as(self, made: Callable[[Rows], Row] | None) -> None:
        """What is kept of each row; None: a view, which stands until the model decodes again."""
        if made is not self._made:
            self._rows.clear()
            self._made = made

    def rewind(self, length: int) -> None:
        """Holds at most the first `length` tokens; a model that cannot rewind is emptied."""
        self._agree()
        if length >= len(self.tokens):
            return
        if self.model.rewind(length):
            del self.tokens[length:]
        else:
            self.tokens.clear()

    def clear(self) -> None:
        """Forgets every text."""
        self.rewind(0)
        self._rows.clear()
        self._path = []

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """See `Model.set_adapter_scales`; what was read with other weights is forgotten."""
        before = self.model.adapter_scales
        self.model.set_adapter_scales(scales)
        if self.model.adapter_scales != before:
            self.clear()

    def prefill(self, tokens: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, Rows]]:
        """Reads a prompt in batches, and its rows on the way.

        Args:
            tokens: the text.
            wanted: after how many tokens a row is wanted, ascending, from 1; for none the cache
                stays as it is.

        Yields:
            (count, logits after the first `count` tokens); a view until the next one.
        """
        if not wanted:
            return
        self._rows.clear()
        self.rewind(min(common_length(self.tokens, tokens), wanted[0] - 1))
        for group in _groups(wanted, self.model.max_rows):
            start = group[0] - 1
            if len(self.tokens) < start:
                self._decode(self.model.extend, tokens[len(self.tokens) : start], 0)
            rows = self._decode(self.model.extend, tokens[start : group[-1]], group[-1] - start)
            for count in group:
                yield count, rows[count - start - 1]

    def keep_row(self, tokens: Sequence[int], count: int, row: Row) -> None:
        """Keeps what follows the first `count` tokens of a text that is in the KV cache."""
        if self._path != tokens:
            self._rows.clear()
            self._path = list(tokens)
        self._rows[count] = row if self._made is None else self._made(row)

    def has(self, tokens: Sequence[int], count: int = 1) -> bool:
        """Whether the rows after the last `count` of these tokens are there."""
        return self._first_missing(tokens, count) is None

    def logits_for(
        self, tokens: Sequence[int], count: int = 1, stable: int | None = None
    ) -> list[Row]:
        """What follows the last `count` prefixes of a text, decoded step by step where unknown.

        Args:
            tokens: the whole text.
            count: at least 1, at most `max_rows`.
            stable: so many tokens will not change when the text grows; None: all.

        Returns:
            Rows, as `keep_as` makes them; the last follows all tokens.
        """
        size, first = len(tokens), self._first_missing(tokens, count)
        if first is not None:
            oldest = min(first - _KEPT_ROWS, size - count + 1)
            self._read(list(tokens), first, oldest, size if stable is None else stable)
        return [self._rows[place] for place in range(size - count + 1, size + 1)]

    def _first_missing(self, tokens: Sequence[int], count: int) -> int | None:
        size = len(tokens)
        same = common_length(self._path, tokens)
        for place in range(size - count + 1, size + 1):
            if place > same or place not in self._rows:
                return place
        return None

    def _read(self, tokens: list[int], first: int, oldest: int, stable: int) -> None:
        """Rows after `first` tokens and each further one.

        Those of the same text from the one after `oldest` tokens on stay.
        """
        same = common_length(self._path, tokens)
        self._rows = {
            place: row
            for place, row in self._rows.items()
            if oldest <= place <= same and self._made is not None
        }
        self._path = tokens
        if self.model.can_rewind:
            self.rewind(min(common_length(self.tokens, tokens), first - 1))
            self._step(tokens, first, len(tokens))
            return
        # Its memory cannot forget: the running sequence holds what will not change, and the tail is
        # read on a copy of it.
        stable = max(min(stable, len(tokens)), len(tokens) - _LONGEST_TAIL, 1)
        same = common_length(self.tokens, tokens)
        if same < len(self.tokens) or first <= same:
            self.rewind(0)
            if first > 1:
                self._decode(self.model.extend, tokens[: min(stable, first - 1)], 0)
        if len(self.tokens) < stable:
            self._step(tokens, first, stable)
        if stable < len(tokens):
            tail = tokens[len(self.tokens) :]
            rows = len(tokens) - max(first, len(self.tokens) + 1) + 1
            found = self.model.peek(tail, rows)
            self.decoded += len(tail)
            self.passes += 1
            self._keep(found, len(tokens))

    def _step(self, tokens: Sequence[int], first: int, size: int) -> None:
        """Decodes up to `size` tokens, with rows from the one after `first` on."""
        now, rows = tokens[len(self.tokens) : size], max(0, size - first + 1)
        # One token by `step` in any case: with those of other requests, where there are any.
        together = not self.exact and len(now) > 1
        call = self.model.extend if together else self.model.step
        self._keep(self._decode(call, now, rows), size)

    def _keep(self, rows: Rows, size: int) -> None:
        """Keeps rows of which the last follows `size` tokens."""
        for back, row in enumerate(reversed(rows)):
            self._rows[size - back] = row if self._made is None else self._made(row)

    def _decode(
        self, call: Callable[[Sequence[int], int], Rows], tokens: Sequence[int], rows: int
    ) -> Rows:
        self._agree()
        if self._made is None:
            self._rows.clear()  # views that are overwritten now
        try:
            result = call(tokens, rows)
        finally:
            # A failed call leaves the cache as it was, or empty where it cannot be taken back.
            del self.tokens[self.model.position :]
        self.tokens += tokens
        self.decoded += len(tokens)
        self.passes += 1
        return result

    def _agree(self) -> None:
        # An interrupt between a call to the model and the line that takes it down leaves one of
        # them behind the other.
        known, there = len(self.tokens), self.model.position
        if there < known:
            del self.tokens[there:]
        elif there > known and not self.model.rewind(known):
            self.tokens.clear()


def _groups(wanted: Sequence[int], size: int) -> Iterator[list[int]]:
    """Splits ascending places where they lie apart, and after `size` rows."""
    group: list[int] = []
    for place in wanted:
        if group and (place - group[-1] > _GAP or place - group[0] >= size):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def context_behind(prompt: Prompt, tokenizer: TextTokenizer) -> CanonicalContext:
    """A proxy's tokens behind a prompt, for the answer that grows there."""
    if not prompt.goes_on:
        return CanonicalContext(tokenizer, prompt.tokens, start=prompt.starts_fresh)
    head = [token for segment in prompt.segments[:-1] for token in segment.tokens]
    return CanonicalContext(tokenizer, head, prompt.segments[-1].text or b"", start=True)


class Proxy:
    """Keeps a model at the canonical tokens of prompt + answer.

    Args:
        cache: the model and what it has read.
        tokenizer: of the model.
        alignment: onto the target's tokens; None for a method that needs the logits alone.
        follows_tokens: whether it takes the target's tokens as they are, as one vocabulary allows.

    Attributes:
        cache: see above.
        depth: how many pieces back the alignment looks.
    """

    def __init__(
        self,
        cache: LogitsCache,
        tokenizer: TextTokenizer,
        alignment: Alignment | None,
        *,
        follows_tokens: bool = False,
    ) -> None:
        self.cache = cache
        self.depth = alignment.depth if alignment else 0
        self._alignment = alignment
        self._follows_tokens = follows_tokens or (
            alignment is not None and alignment.follows_tokens
        )
        self._tokenizer = tokenizer
        self._context = CanonicalContext(tokenizer, (), start=False)
        self._rows: list[Row] = []

    @property
    def alignment(self) -> Alignment:
        """See above."""
        assert self._alignment is not None
        return self._alignment

    @property
    def tokens(self) -> list[int]:
        """The tokens of prompt and answer; do not change them."""
        return self._context.tokens

    @property
    def tokens_left(self) -> int:
        """Tokens that still fit into the context."""
        return self.cache.model.context_limit - len(self.tokens)

    @property
    def stable(self) -> int:
        """Tokens that stay as they are when the text grows."""
        return len(self.tokens) if self._follows_tokens else self._context.stable

    def start(self, prompt: Prompt) -> None:
        """Takes a prompt; decodes nothing yet. What the KV cache shares with it is kept."""
        self.cache.keep_as(softmax if self._alignment else np.copy)
        if self._follows_tokens:
            self._context = CanonicalContext(self._tokenizer, prompt.tokens, start=False)
        else:
            self._context = context_behind(prompt, self._tokenizer)

    def append(self, token: int, piece: bytes, before: Sequence[int] = ()) -> None:
        """Follows one token of the leading model and its bytes. Decodes nothing yet: see `sync`.

        `before` are the tokens in front of it which some of these bytes are of.
        """
        if self._follows_tokens:
            self._context.tokens += [*before, token]
        elif piece:
            self._context.append(piece)
            role, notices = self.cache.role, self.cache.notices
            notice = f"The {role} has no token for some bytes of the text and does not see them."
            if self._context.unseen and notice not in notices:
                notices.append(notice)

    def keeps_tokens(self, text: bytes) -> bool:
        """Whether its tokens so far stay when this text follows.

        They change where the boundary in front of that text lies inside a longer piece.
        """
        return self._follows_tokens or self.context().append(text) >= len(self.tokens)

    def context(self) -> CanonicalContext:
        """A copy of the tokens of prompt and answer, to go on from or to `restore`."""
        return self._context.copy()

    def restore(self, saved: CanonicalContext) -> None:
        """Goes back to a text, or to one that began like it."""
        self._context = saved.copy()

    def wanted_rows(self) -> list[int]:
        """After how many tokens rows are needed: after the last pieces that may be healed."""
        size = len(self.tokens)
        return list(range(size - len(self._context.rests(self.depth)), size + 1))

    def sync(self) -> None:
        """Brings the model to the text and keeps the rows that `probability` needs."""
        self._rows = self.cache.logits_for(self.tokens, len(self.wanted_rows()), self.stable)

    def read_ahead(self, tokens: Sequence[int], pieces: Sequence[bytes]) -> None:
        """Reads in one batch what the next positions need if these tokens of the target come.

        Positions at which the proxy's tokens are no prefix of those behind the draft (it ends
        inside one of them) are read when they are reached.
        """
        first, size = self.wanted_rows()[0], len(self.tokens)
        if self._follows_tokens:
            path = [*self.tokens, *tokens]
        else:
            context = self.context()
            context.append(b"".join(pieces))
            path = context.tokens
            if path[:size] != self.tokens:
                context, path = self.context(), self.tokens
                for piece in pieces:
                    context.append(piece)
                    if context.tokens[:size] != self.tokens:
                        break
                    path = list(context.tokens)
        # Of a text that may not fit the answer may still be another one, and fit.
        model = self.cache.model
        path = path[: min(first - 1 + model.max_rows, model.context_limit)]
        if len(path) >= size:
            self.cache.logits_for(path, len(path) - first + 1, self.stable)

    def probability(self, query: CandidateQuery) -> FloatArray:
        """Probability of each token in query, shape (n,); `sync` comes first."""
        size, rows = len(self.tokens), self._rows
        back = [
            Back(rows[-1 - number], self.tokens[size - number], rest)
            for number, rest in enumerate(self._context.rests(self.depth), start=1)
        ]
        return self.alignment.probability(query, rows[-1], back)

    @property
    def row(self) -> Row:
        """What follows the text, over the proxy's own vocabulary, shape (vocabulary,).

        Probabilities, or without an alignment logits.
        """
        return self.cache.logits_for(self.tokens, 1, self.stable)[0]


def queries(
    own: Candidates, proxies: Sequence[Proxy], *, start: bool = False
) -> Mapping[int, CandidateQuery]:
    """What is asked about the candidates, by the identity of the alignment that proxies share.

    `start` is whether an answer begins whose leading space is the tokenizer's own.
    """
    prior = np.exp(own.logp)
    return {
        id(alignment): alignment.query(own.tokens, prior, start=start)
        for alignment in {id(each.alignment): each.alignment for each in proxies}.values()
    }


def proxy_logps(
    own: Candidates,
    proxies: Sequence[Proxy],
    asked: Mapping[int, CandidateQuery],
    said: Sequence[FloatArray],
) -> FloatArray:
    """What k proxies say about the candidates, as logarithms, shape (k, n), from probabilities.

    Where the proxies have no say on a token (a control token of the target), they are taken to say
    what the target says: its contrast is 0. For the floor that is added see `alignment.FLOOR`.
    """
    if not proxies:
        return np.empty((0, len(own.tokens)))
    rows = np.array(said)
    rows += max(each.alignment.floor for each in proxies)
    np.log(rows, out=rows)
    aligned = functools.reduce(np.logical_and, (query.aligned for query in asked.values()))
    return rows if aligned.all() else np.where(aligned, rows, own.logp)


class Model(Protocol):
    """What the decoder needs of a model: one running sequence of tokens in its KV cache.

    Logits are rows of float32 over the vocabulary, unnormalised (nats). A row is a view into memory
    that the next call to the same model overwrites.

    Attributes:
        context_limit: tokens that the context holds.
        position: tokens in the KV cache now.
        max_rows: the most logit rows that one call can return.
        size: bytes of its weights.
        can_rewind: whether the memory can forget a part; see `rewind`.
        batch_floor: how `step` gives a token the same bits whatever comes with it. 0: in batches of
            any size; 1: one by one; more: in batches of at least so many.
        adapter_scales: weights of the LoRA adapters on the model, in their order.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def context_limit(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def max_rows(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def can_rewind(self) -> bool: ...

    @property
    def batch_floor(self) -> int: ...

    @property
    def adapter_scales(self) -> tuple[float, ...]: ...

    def price(self, count: int) -> float:
        """What a batch of so many tokens costs here, in batches of one, as far as is known."""
        ...

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text the way llama.cpp does, without adding BOS or EOS.

        With `special`, control tokens written out in `text` become those tokens; without, they
        stay text, except USER_DEFINED ones, which llama.cpp always matches. A tokenizer that puts
        a space before a text does so here too.
        """
        ...

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens in batches and returns the logits after the last `rows` of them.

        Args:
            tokens: at least one token. With `rows` = 0 no logits are computed.
            rows: 0 to min(len(tokens), max_rows).

        Returns:
            Shape (rows, vocabulary), the last row being what follows all tokens. Every value is
            finite.

        Raises:
            ContextOverflow: the tokens do not fit; nothing was appended.
            NumericalError: a logit is NaN or infinite.
        """
        ...

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """As `extend`, with the bits that these tokens have when they are appended one by one."""
        ...

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """The same logits as `step`, as a copy; the running sequence stays as it was."""
        ...

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on.

        False where the model's memory cannot forget a part (sliding window, recurrent): then the
        whole sequence has been dropped (`position` is 0) and must be computed again.
        """
        ...

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """Gives the adapters other weights; where they change, the whole sequence is dropped.

        None is for those that the model was loaded with.

        Raises:
            UsageError: there are not as many as adapters.
        """
        ...

    def close(self) -> None:
        """Frees the KV cache (and the weights, when nothing else uses them)."""
        ...
