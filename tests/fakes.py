"""A model in a few lines, with a made-up vocabulary, and a tokenizer that needs no llama.cpp."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from capt_local.errors import ContextOverflow
from capt_local.tokenization import TextTokenizer, TokenKind, Vocabulary

END = "<end>"


def make_vocabulary(words: Sequence[str | bytes], *, all_bytes: bool = True) -> Vocabulary:
    """BOS (0), an end token (1), all single bytes if wanted, then the words."""
    singles = [bytes([value]) for value in range(256)] if all_bytes else []
    text = [word.encode() if isinstance(word, str) else word for word in words]
    pieces = [b"<s>", END.encode(), *singles, *text]
    kinds = [TokenKind.CONTROL] * 2
    kinds += [TokenKind.BYTE] * len(singles) + [TokenKind.NORMAL] * len(text)
    return Vocabulary(pieces, kinds, end_ids=[1], bos=0, add_bos=True)


def greedy_tokenizer(
    vocabulary: Vocabulary, *, leading_space: bytes = b""
) -> Callable[..., list[int]]:
    """Longest match from the left; splits in front of spaces, as all real tokenizers do.

    A byte that the vocabulary has no token for becomes token 0, which is no text.
    """
    ids: dict[bytes, int] = {}
    for token in np.flatnonzero(vocabulary.is_text).tolist():
        ids[vocabulary.piece(token)] = token
    longest = max(map(len, ids))

    def tokenize(text: bytes, *, special: bool) -> list[int]:
        text = leading_space + text
        tokens = []
        while text:
            sizes = range(min(longest, len(text)), 0, -1)
            size = next((n for n in sizes if text[:n] in ids), 1)
            tokens.append(ids.get(text[:size], 0))
            text = text[size:]
        return tokens

    return tokenize


class FakeModel:
    """Logits are a fixed random function of the tokens so far.

    Args:
        vocabulary: of the model.
        seed: two models with the same seed and vocabulary are the same model.
        scale: standard deviation of the logits.
        can_rewind: False drops everything instead, as recurrent models do.
        limit: tokens of context.
        end_logit: added to the control tokens, which end an answer, so that it goes on unless a
            test wants it to end.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        seed: int,
        *,
        scale: float = 3.0,
        can_rewind: bool = True,
        limit: int = 512,
        leading_space: bytes = b"",
        max_rows: int = 4,
        end_logit: float = -30.0,
    ) -> None:
        self.vocabulary = vocabulary
        self.context_limit = limit
        self.max_rows = max_rows
        self.can_rewind = can_rewind
        self.batch_floor = 0
        self.size = 1
        self.adapter_scales: tuple[float, ...] = ()
        self.tokens: list[int] = []
        self.extended = 0
        self._seed = seed
        self._scale = scale
        self._end_logit = end_logit
        self._tokenize = greedy_tokenizer(vocabulary, leading_space=leading_space)

    @property
    def position(self) -> int:
        return len(self.tokens)

    def batch_cost(self, count: int) -> float:
        return 1.0 + 0.22 * (count - 1)

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        return self._tokenize(text, special=special)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The row after these tokens."""
        state = zlib.crc32(np.asarray(tokens, np.int64).tobytes(), self._seed)
        rng = np.random.default_rng(state)
        row = rng.standard_normal(len(self.vocabulary)) * self._scale
        row[self.vocabulary.kinds == TokenKind.CONTROL] += self._end_logit
        return row.astype(np.float32)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        assert tokens and 0 <= rows <= min(len(tokens), self.max_rows)
        if self.position + len(tokens) > self.context_limit:
            raise ContextOverflow({"model": self.position + len(tokens)}, self.context_limit)
        self.tokens += list(tokens)
        self.extended += len(tokens)
        size = len(self.tokens)
        made = [self.logits(self.tokens[:end]) for end in range(size - rows + 1, size + 1)]
        return np.array(made).reshape(rows, len(self.vocabulary))

    def rewind(self, length: int) -> bool:
        if not self.can_rewind and length < self.position:
            self.tokens.clear()
            return False
        del self.tokens[length:]
        return True

    def set_adapter_scales(self, scales: Sequence[float] | None) -> None:
        assert not scales

    def step(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        return self.extend(tokens, rows)

    def peek(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        size = self.position
        found = self.extend(tokens, rows).copy()
        del self.tokens[size:]
        return found

    def close(self) -> None:
        self.tokens.clear()


def text_tokenizer(model: FakeModel) -> TextTokenizer:
    return TextTokenizer(model.vocabulary, model.tokenize)


def softmax(row: np.ndarray) -> np.ndarray:
    shares = np.exp(row.astype(np.float64) - row.max())
    return shares / shares.sum()
