"""One model's KV cache with the logits computed on it, and the proxies that follow the target.

A `LogitsCache` decodes the tokens that its model's KV cache lacks, returns the logits after any
position, and keeps the most recent rows (those of a draft too). A `Proxy` is a cache positioned at
the canonical tokens of a text that grows in the target's tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from capt_local.alignment import Alignment, CandidateQuery, CanonicalContext, EarlierRow
from capt_local.decoding.combine import Candidates, softmax
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import FloatArray, Row, Rows, TextTokenizer, Vocabulary, common_length

# Rows of a prompt at most this many tokens apart are computed in one batch together with the unused
# rows between them: another batch would cost more than a few rows.
_GAP = 8
# Rows kept before the first missing one: healing needs a few, and some more save decoding tokens
# again when a short word changes a proxy's last tokens.
_KEPT_ROWS = 8
# In a text without a space, only this many last tokens count as those that may still change.
_LONGEST_TAIL = 12


class LogitsCache:
    """A model, the tokens in its KV cache, and the logits after them.

    Args:
        role: "target", "expert" or "base", for messages.
        model: the model; only this object may extend or rewind it.

    Attributes:
        tokens: the contents of the KV cache, which may go beyond the text; read only.
        decoded: tokens decoded so far.
        passes: calls that decoded them.
        notices: messages for the user, each once.
        exact: whether logits are bit for bit those of decoding token by token; otherwise several
            tokens are decoded in batches as large as possible, as for a known text.
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
        self._rows: dict[int, Row] = {}  # by the number of its tokens before the row

    def set_row_transform(self, made: Callable[[Rows], Row] | None) -> None:
        """Sets the function that makes a kept row of logits; None keeps views of them."""
        if made is not self._made:
            self._rows.clear()
            self._made = made

    def rewind(self, length: int) -> None:
        """Drops all tokens after the first `length`; all of them if the model cannot rewind."""
        self._sync_with_model()
        if length >= len(self.tokens):
            return
        if self.model.rewind(length):
            del self.tokens[length:]
        else:
            self.tokens.clear()

    def clear(self) -> None:
        """Drops all tokens and rows."""
        self.rewind(0)
        self._rows.clear()
        self._path = []

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """See `Model.set_adapter_scales`; a change clears tokens and rows."""
        before = self.model.adapter_scales
        self.model.set_adapter_scales(scales)
        if self.model.adapter_scales != before:
            self.clear()

    def prefill(self, tokens: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, Rows]]:
        """Decodes a prompt in batches, and yields the logits at some of its positions.

        Args:
            tokens: the text.
            wanted: token counts (ascending, from 1) after which logits are needed; if there are
                none, nothing is decoded.

        Yields:
            (count, logits after the first `count` tokens); a view that the next one overwrites.
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

    def store_row(self, tokens: Sequence[int], count: int, row: Row) -> None:
        """Stores the logits after the first `count` tokens of a text that is in the KV cache."""
        if self._path != tokens:
            self._rows.clear()
            self._path = list(tokens)
        self._rows[count] = row if self._made is None else self._made(row)

    def has(self, tokens: Sequence[int], count: int = 1) -> bool:
        """Whether the rows after the last `count` prefixes of these tokens are stored."""
        return self._first_missing(tokens, count) is None

    def logits_for(
        self, tokens: Sequence[int], count: int = 1, stable: int | None = None
    ) -> list[Row]:
        """The logits after each of the last `count` prefixes of a text; missing ones are decoded.

        Args:
            tokens: the whole text.
            count: at least 1, at most `max_rows`.
            stable: number of leading tokens that will not change as the text grows; None: all.

        Returns:
            Rows as converted by `set_row_transform`; the last one is after all tokens.
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
        """Computes the rows after `first` and more tokens.

        Stored rows of the same text are kept from the one after `oldest` tokens on.
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
        # This memory cannot be rewound: the running sequence holds the stable tokens alone, and the
        # tail is decoded on a copy of it.
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
        """Decodes up to `size` tokens, with rows from the one after `first` tokens on."""
        now, rows = tokens[len(self.tokens) : size], max(0, size - first + 1)
        # A single token always goes through `step`, which may batch it with other requests' tokens.
        together = not self.exact and len(now) > 1
        call = self.model.extend if together else self.model.step
        self._keep(self._decode(call, now, rows), size)

    def _keep(self, rows: Rows, size: int) -> None:
        """Stores consecutive rows; the last one is after `size` tokens."""
        for back, row in enumerate(reversed(rows)):
            self._rows[size - back] = row if self._made is None else self._made(row)

    def _decode(
        self, call: Callable[[Sequence[int], int], Rows], tokens: Sequence[int], rows: int
    ) -> Rows:
        self._sync_with_model()
        if self._made is None:
            self._rows.clear()  # views, which this call overwrites
        try:
            result = call(tokens, rows)
        finally:
            # A failed call leaves the cache as it was, or empty if the model cannot rewind.
            del self.tokens[self.model.position :]
        self.tokens += tokens
        self.decoded += len(tokens)
        self.passes += 1
        return result

    def _sync_with_model(self) -> None:
        # `tokens` and the model's position differ after an interrupt between a call to the model
        # and the line that records it.
        known, there = len(self.tokens), self.model.position
        if there < known:
            del self.tokens[there:]
        elif there > known and not self.model.rewind(known):
            self.tokens.clear()


def _groups(wanted: Sequence[int], size: int) -> Iterator[list[int]]:
    """Splits ascending positions where a gap is wide, and so that no group spans over `size`."""
    group: list[int] = []
    for place in wanted:
        if group and (place - group[-1] > _GAP or place - group[0] >= size):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def context_after_prompt(prompt: Prompt, tokenizer: TextTokenizer) -> CanonicalContext:
    """The context of a proxy after a prompt, to which the answer is appended."""
    if not prompt.continues_text:
        return CanonicalContext(tokenizer, prompt.tokens, start=prompt.starts_text)
    head = [token for segment in prompt.segments[:-1] for token in segment.tokens]
    return CanonicalContext(tokenizer, head, prompt.segments[-1].text or b"", start=True)


class Proxy:
    """An expert or base model at the canonical tokens of prompt + answer.

    Args:
        cache: the model with its KV cache.
        tokenizer: of the model.
        alignment: onto the leading model's tokens; None for a method that uses the logits alone.
        shares_vocabulary: whether it has the leading model's vocabulary and uses its token ids.

    Attributes:
        cache: see above.
        depth: number of last pieces that token healing may replace.
    """

    def __init__(
        self,
        cache: LogitsCache,
        tokenizer: TextTokenizer,
        alignment: Alignment | None,
        *,
        shares_vocabulary: bool = False,
    ) -> None:
        self.cache = cache
        self.depth = alignment.depth if alignment else 0
        self._alignment = alignment
        self._follows_tokens = shares_vocabulary or (
            alignment is not None and alignment.shares_vocabulary
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
        """Number of leading tokens that no further text can change."""
        return len(self.tokens) if self._follows_tokens else self._context.stable

    def start(self, prompt: Prompt) -> None:
        """Sets the prompt; decodes nothing yet and keeps the KV cache."""
        self.cache.set_row_transform(softmax if self._alignment else np.copy)
        if self._follows_tokens:
            self._context = CanonicalContext(self._tokenizer, prompt.tokens, start=False)
        else:
            self._context = context_after_prompt(prompt, self._tokenizer)

    def append(self, token: int, piece: bytes, before: Sequence[int] = ()) -> None:
        """Appends one token of the leading model, by its bytes. Decodes nothing: see `sync`.

        `before` are earlier tokens of the leading model whose bytes `piece` holds too.
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
        """Whether appending this text leaves the tokens so far unchanged.

        It does not if a piece of the new tokenization spans the boundary.
        """
        return self._follows_tokens or self.context().append(text) >= len(self.tokens)

    def context(self) -> CanonicalContext:
        """A copy of the context, to append to or to `restore`."""
        return self._context.copy()

    def restore(self, saved: CanonicalContext) -> None:
        """Replaces the context by a saved one; the KV cache is rewound when it is next used."""
        self._context = saved.copy()

    def needed_positions(self) -> list[int]:
        """Positions (token counts) whose logits `probability` needs: the last and healable ones."""
        size = len(self.tokens)
        return list(range(size - len(self._context.rests(self.depth)), size + 1))

    def sync(self) -> None:
        """Decodes the text's missing tokens and gets the rows that `probability` needs."""
        self._rows = self.cache.logits_for(self.tokens, len(self.needed_positions()), self.stable)

    def read_ahead(self, tokens: Sequence[int], pieces: Sequence[bytes]) -> None:
        """Decodes in one batch the rows needed if these drafted tokens of the target are accepted.

        Where the proxy's tokens so far are not a prefix of those after the draft (a piece spans
        the boundary), rows are decoded when their position is reached.
        """
        first, size = self.needed_positions()[0], len(self.tokens)
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
        # Cut, not refused: the draft may be rejected, and the answer then still fits.
        model = self.cache.model
        path = path[: min(first - 1 + model.max_rows, model.context_limit)]
        if len(path) >= size:
            self.cache.logits_for(path, len(path) - first + 1, self.stable)

    def probability(self, query: CandidateQuery) -> FloatArray:
        """Probability of each token in query, shape (n,); call `sync` first."""
        size, rows = len(self.tokens), self._rows
        back = [
            EarlierRow(rows[-1 - number], self.tokens[size - number], rest)
            for number, rest in enumerate(self._context.rests(self.depth), start=1)
        ]
        return self.alignment.probability(query, rows[-1], back)

    @property
    def row(self) -> Row:
        """The row after the text, over the proxy's own vocabulary, shape (vocabulary,).

        Probabilities, or without an alignment logits.
        """
        return self.cache.logits_for(self.tokens, 1, self.stable)[0]


def queries(
    own: Candidates, proxies: Sequence[Proxy], *, start: bool = False
) -> Mapping[int, CandidateQuery]:
    """The query for the candidates under each alignment, by `id` of the alignment.

    `start`: the answer begins here, and its leading space is added by the tokenizer.
    """
    prior = np.exp(own.logp)
    return {
        id(alignment): alignment.query(own.tokens, prior, start=start)
        for alignment in {id(each.alignment): each.alignment for each in proxies}.values()
    }


def proxy_logps(
    own: Candidates,
    proxies: Sequence[Proxy],
    by_alignment: Mapping[int, CandidateQuery],
    probabilities: Sequence[FloatArray],
) -> FloatArray:
    """Log-probabilities of the candidates under k proxies, shape (k, n), from probabilities (n,).

    A token that is not aligned (a control token of the target) gets the target's log-probability
    under every proxy, so that its contrast is 0. For the floor see `alignment.FLOOR`.
    """
    if not proxies:
        return np.empty((0, len(own.tokens)))
    rows = np.array(probabilities)
    rows += max(each.alignment.floor for each in proxies)
    np.log(rows, out=rows)
    aligned = functools.reduce(np.logical_and, (query.aligned for query in by_alignment.values()))
    return rows if aligned.all() else np.where(aligned, rows, own.logp)


class Model(Protocol):
    """The interface of a model to the decoder: one running sequence of tokens in its KV cache.

    Logits are rows of float32 over the vocabulary, unnormalised (nats). A row is a view into memory
    that the next call to the same model overwrites.

    Attributes:
        context_limit: tokens that the context holds.
        position: tokens in the KV cache now.
        max_rows: the most logit rows that one call can return.
        size: bytes of its weights.
        can_rewind: whether the end of the sequence can be dropped; see `rewind`.
        batch_floor: the batch sizes with which `step` is deterministic. 0: any size; 1: one token
            at a time; n > 1: at least n tokens, padded if need be.
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

    def batch_cost(self, count: int) -> float:
        """Estimated time of a batch of `count` tokens, in multiples of a batch of one token."""
        ...

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text the way llama.cpp does, without adding BOS or EOS.

        With `special`, the names of control tokens in `text` become those tokens; without, they
        stay text, except USER_DEFINED ones, which llama.cpp always matches. A tokenizer with
        `add_space_prefix` adds that space here too.
        """
        ...

    def extend(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """Appends tokens in batches and returns the logits after the last `rows` of them.

        Args:
            tokens: at least one token. With `rows` = 0 no logits are computed.
            rows: 0 to min(len(tokens), max_rows).

        Returns:
            Shape (rows, vocabulary); the last row is after all tokens. Every value is finite.

        Raises:
            ContextOverflow: the tokens do not fit; nothing was appended.
            NumericalError: a logit is NaN or infinite.
        """
        ...

    def step(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """As `extend`, with logits bit for bit those of appending the tokens one by one."""
        ...

    def peek(self, tokens: Sequence[int], rows: int = 1) -> Rows:
        """The same logits as `step`, as a copy; the running sequence stays as it was."""
        ...

    def rewind(self, length: int) -> bool:
        """Drops all tokens from position `length` on.

        False if the memory cannot be rewound (sliding window, recurrent state): then the whole
        sequence has been dropped (`position` is 0) and must be decoded again.
        """
        ...

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        """Sets the scales of the LoRA adapters; a change drops the whole sequence.

        None: the scales that the model was loaded with.

        Raises:
            UsageError: the number of scales is not that of the adapters.
        """
        ...

    def close(self) -> None:
        """Frees the KV cache (and the weights, when nothing else uses them)."""
        ...
