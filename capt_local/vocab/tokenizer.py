"""Text that people wrote, and scaffolding, as tokens.

llama.cpp's tokenizer is right for well-behaved text. Four things it does not do are done here:
text goes on from earlier text without a second leading space, control and user-defined tokens
never come out of text, bytes that are not UTF-8 are kept, and the place where a text may be cut
without changing its tokens is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from capt_local.vocab.vocabulary import TokenKind, Vocabulary

Tokenize = Callable[..., list[int]]

# A control character that no vocabulary merges with its neighbours: SentencePiece models spell it
# as one byte token. Text tokenized behind it is not at a beginning, so it gets no leading space.
_GUARD = b"\x01"
_SPACE_AFTER_TEXT = re.compile(rb"[^\s] ")


class TextTokenizer:
    """Turns bytes into tokens of one vocabulary.

    Args:
        vocabulary: of the model.
        tokenize: `tokenize(text: bytes, *, special: bool) -> list[int]`, llama.cpp's tokenizer
            without BOS or EOS (see `decode.model.Model.tokenize`).
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        """Finds out whether the tokenizer puts a space in front of a text."""
        self.vocabulary = vocabulary
        self._tokenize = tokenize
        self._forbidden = self._forbidden_in_text()
        self.lead: bytes = b" " if self._bytes(tokenize(b"a", special=False)) == b" a" else b""
        self.cuts_at_spaces: bool = not any(
            _SPACE_AFTER_TEXT.search(piece)
            for piece, text in zip(vocabulary.pieces(), vocabulary.is_text, strict=True)
            if text
        )

    def encode(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of a text that people or models wrote. Markers in it stay text.

        Args:
            text: any bytes; what is not UTF-8 becomes byte tokens.
            start: whether the text begins a sequence or follows a control token; a tokenizer with
                a leading space (`lead`) puts it there, and `text` of the result is lead + text.

        Returns:
            Tokens whose bytes joined are `text` (after the lead). None is CONTROL, and none is
            USER_DEFINED except runs of white space, which no template uses as a marker.

        Raises:
            ValueError: the vocabulary cannot spell one of the bytes.
        """
        tokens: list[int] = []
        for part, valid in _utf8_parts(text):
            if valid:
                raw = self._split(part, start=start and not tokens, special=False)
                tokens += self._as_text(raw)
            else:
                tokens += [self._byte(byte) for byte in part]
        return tokens

    def scaffold(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of template text, in which control tokens written out are meant as such."""
        return self._split(text, start=start, special=True)

    def last_cut(self, text: bytes) -> int:
        """Where `text` can be cut so that the tokens of both sides are those of the whole.

        A word that follows a space after text begins a token in every tokenization, if no piece
        of the vocabulary holds a space behind another character. 0 when there is no such place.
        """
        if not self.cuts_at_spaces:
            return 0
        cut = text.rfind(b" ")
        while cut > 0 and text[cut - 1 : cut].isspace():
            cut = text.rfind(b" ", 0, cut)
        return max(cut, 0)

    def _split(self, text: bytes, *, start: bool, special: bool) -> list[int]:
        if not text:
            return []
        if start or not self.lead:
            return self._tokenize(text, special=special)
        tokens = self._tokenize(_GUARD + text, special=special)
        return tokens[self._guard_tokens(tokens) :]

    def _guard_tokens(self, tokens: list[int]) -> int:
        """How many tokens spell the lead and the guard character."""
        seen = b""
        for count, token in enumerate(tokens):
            if seen == self.lead + _GUARD:
                return count
            seen += self.vocabulary.piece(token)
        if seen == self.lead + _GUARD:
            return len(tokens)
        raise ValueError("this tokenizer merges a control character with its neighbours")

    def _forbidden_in_text(self) -> np.ndarray:
        kinds = self.vocabulary.kinds
        forbidden = np.isin(kinds, (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED))
        for token in np.flatnonzero(kinds == TokenKind.USER_DEFINED).tolist():
            if self.vocabulary.piece(token).isspace():
                forbidden[token] = False
        return forbidden | self.vocabulary.is_end

    def _as_text(self, tokens: list[int]) -> list[int]:
        """Spells tokens that must not come out of text by smaller ones."""
        if not self._forbidden[tokens].any():
            return tokens
        result: list[int] = []
        for token in tokens:
            spelled = self._spell(self.vocabulary.piece(token)) if self._forbidden[token] else None
            result += [token] if spelled is None else spelled
        return result

    def _spell(self, piece: bytes) -> list[int]:
        first = len(piece.decode("utf-8", "replace")[:1].encode()) if piece else 0
        if len(piece) <= first:
            return [self._byte(byte) for byte in piece]
        head, tail = piece[:first], piece[first:]
        return self.encode(head, start=False) + self.encode(tail, start=False)

    def _byte(self, byte: int) -> int:
        try:
            return self.vocabulary.byte_ids[byte]
        except KeyError:
            raise ValueError(f"the vocabulary cannot spell the byte 0x{byte:02x}") from None

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(self.vocabulary.piece(token) for token in tokens)


def _utf8_parts(text: bytes) -> Iterator[tuple[bytes, bool]]:
    """Splits bytes into runs that are UTF-8 (True) and runs that are not (False)."""
    while text:
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start], True
            yield text[error.start : error.end], False
            text = text[error.end :]
        else:
            yield text, True
            return
