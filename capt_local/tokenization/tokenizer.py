"""Text that people wrote, and scaffolding, as tokens.

llama.cpp's tokenizer is right for well-behaved text. What it does not do is done here: text goes
on from earlier text without a second leading space, control and user-defined tokens never come out
of text, no byte is lost (not those that are not UTF-8, not the character that SentencePiece writes
for a space), the place where a text may be cut without changing its tokens is known, and a long
text reaches native code in parts between such places.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from capt_local.tokenization.vocabulary import TokenKind, Vocabulary

Tokenize = Callable[..., list[int]]

# Control characters that no vocabulary merges with its neighbours: SentencePiece models spell them
# as one byte token. Text tokenized behind one is not at a beginning, so it gets no leading space.
_GUARDS = tuple(bytes((byte,)) for byte in (1, 2, 3, 5, 14, 15))
# Bytes that go to llama.cpp at once where the text can be cut: no run between cuts is longer.
_PART = 4096
_TEXT_THEN_SPACE = re.compile(rb"(?=(\S) )")
_RUNS = re.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
# An answer is tokenized word by word, and most of its words come again.
_SHORT, _KEPT = 24, 4096
# What SentencePiece writes for a space; written by people, it is not one.
_SPACE_MARK = "\u2581".encode()


class UnspellableByte(ValueError):
    """The vocabulary has no token for a byte of the text."""

    def __init__(self, byte: int) -> None:
        super().__init__(f"the vocabulary cannot spell the byte 0x{byte:02x}")
        self.byte = byte


class TextTokenizer:
    """Turns bytes into tokens of one vocabulary.

    Attributes:
        vocabulary: of the model.
        tokenize: `tokenize(text: bytes, *, special: bool) -> list[int]`, llama.cpp's tokenizer
            without BOS or EOS (see `decoding.model.Model.tokenize`).
        lead: the space that the tokenizer puts in front of a text, or nothing.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        self.vocabulary = vocabulary
        self.tokenize = tokenize
        self._forbidden = self._forbidden_in_text()
        self.lead: bytes = b" " if self._bytes(tokenize(b"a", special=False)) == b" a" else b""
        self._uncut = _bytes_before_spaces(vocabulary)
        self._apart = b"" if self.lead else _whitespace_apart(vocabulary)
        cuts = b"(?<=[^\\s%b]) " % re.escape(bytes(sorted(self._uncut)))
        if self._apart:
            cuts += b"|(?<=[%b])(?=[^%b])" % (self._apart, self._apart)
        self._cuts = re.compile(cuts)
        self._short = functools.lru_cache(_KEPT)(lambda text: self._encode(text, start=False))

    def encode(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of a text that people or models wrote. Markers in it stay text.

        Args:
            text: any bytes; what is not UTF-8 becomes byte tokens.
            start: whether the text begins a sequence or follows a control token; a tokenizer with
                a leading space (`lead`) puts it there, and `text` of the result is lead + text.

        Returns:
            Tokens whose bytes joined are `text` (after the lead). None is CONTROL, and none is
            USER_DEFINED except white space and single characters, which are no markers.

        Raises:
            UnspellableByte: the vocabulary has no token for one of the bytes.
            TextTooLong: see `Weights.tokenize`.
        """
        if not start and len(text) <= _SHORT:
            return list(self._short(text))
        tokens: list[int] = []
        for part in self._parts(text):
            tokens += self._encode(part, start=start and not tokens)
        return tokens

    def encode_known(self, text: bytes, *, start: bool) -> tuple[list[int], bool]:
        """Tokens of a text without characters that cannot be spelt, and whether that is all."""
        try:
            return self.encode(text, start=start), True
        except UnspellableByte:
            known = b"".join([each for each in _characters(text) if self._can_spell(each)])
            return self.encode(known, start=start), False

    def _can_spell(self, character: bytes) -> bool:
        try:
            return bool(self._short(character))
        except UnspellableByte:
            return False

    def _parts(self, text: bytes) -> Iterator[bytes]:
        """The text in parts of at most `_PART` bytes, or more where it cannot be cut before."""
        at = 0
        while len(text) - at > _PART:
            cut = at + self.last_cut(text[at : at + _PART])
            if cut == at:
                found = self._cuts.search(text, at + _PART - 1)
                if found is None:
                    break
                cut = found.start()
            yield text[at:cut]
            at = cut
        yield text[at:]

    def _encode(self, text: bytes, *, start: bool) -> list[int]:
        tokens: list[int] = []
        for part, valid in _utf8_parts(text):
            first = start and not tokens
            if valid:
                tokens += self._encode_valid(part, start=first)
            else:
                tokens += self.lead_tokens if first else ()
                tokens += [self._byte(byte) for byte in part]
        return tokens

    def forget(self) -> None:
        """Keeps nothing of the words that it has met."""
        self._short.cache_clear()

    @cached_property
    def lead_tokens(self) -> tuple[int, ...]:
        """The tokens of the lead alone, as the tokenizer writes them in front of a text."""
        if not self.lead:
            return ()
        tokens = self.tokenize(self._guard, special=False)
        return tuple(tokens[: self._tokens_of(self.lead, tokens)])

    @cached_property
    def _guard(self) -> bytes:
        """A character behind which the tokenizer writes text as it does inside a text."""
        for guard in _GUARDS:
            tokens = self.tokenize(guard + b"a", special=False)
            if self._bytes(tokens) == self.lead + guard + b"a":
                return guard
        raise ValueError("this tokenizer has no control character that stays apart")

    def scaffold(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of template text, in which control tokens written out are meant as such."""
        return self._split(text, start=start, special=True)

    def last_cut(self, text: bytes) -> int:
        """Where `text` can be cut so that the tokens of both sides are those of the whole.

        A space begins a token in every tokenization, if no piece of the vocabulary holds a space
        behind the byte that is in front of it. White space that stands apart (see
        `_whitespace_apart`) ends one. 0 when there is no such place.
        """
        cut = text.rfind(b" ")
        while cut > 0 and (text[cut - 1] in self._uncut or text[cut - 1 : cut].isspace()):
            cut = text.rfind(b" ", 0, cut)
        body = text.rstrip(self._apart) if self._apart else b""
        return max(cut, 0, *(body.rfind(byte) + 1 for byte in self._apart))

    def _split(self, text: bytes, *, start: bool, special: bool) -> list[int]:
        if not text:
            return []
        if start or not self.lead:
            return self.tokenize(text, special=special)
        guard = self._guard
        tokens = self.tokenize(guard + text, special=special)
        return tokens[self._tokens_of(self.lead + guard, tokens) :]

    def _tokens_of(self, front: bytes, tokens: list[int]) -> int:
        """How many tokens spell `front`, which the text of `tokens` begins with."""
        seen = b""
        for count, token in enumerate(tokens):
            if seen == front:
                return count
            seen += self.vocabulary.piece(token)
        if seen == front:
            return len(tokens)
        raise ValueError("this tokenizer merges a control character with its neighbours")

    def _forbidden_in_text(self) -> np.ndarray:
        kinds = self.vocabulary.kinds
        forbidden = np.isin(kinds, (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED))
        for token in np.flatnonzero(kinds == TokenKind.USER_DEFINED).tolist():
            piece = self.vocabulary.piece(token)
            if piece.isspace() or len(piece.decode("utf-8", "replace")) == 1:
                forbidden[token] = False
        return forbidden | self.vocabulary.is_end

    @cached_property
    def _matched_anywhere(self) -> re.Pattern[bytes]:
        """What llama.cpp does not take for text even where it should, the longest first."""
        user_defined = self.vocabulary.kinds == TokenKind.USER_DEFINED
        found = {
            self.vocabulary.piece(token)
            for token in np.flatnonzero(user_defined & self._forbidden).tolist()
        }
        longest_first = sorted(found | {_SPACE_MARK}, key=len, reverse=True)
        return re.compile(b"|".join(map(re.escape, filter(None, longest_first))))

    def _encode_valid(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of UTF-8 text; the careful way only where the plain one goes wrong."""
        tokens = self._split(text, start=start, special=False)
        if self._is(tokens, text, start=start):
            return tokens
        tokens, at = [], 0
        for match in self._matched_anywhere.finditer(text):
            tokens += self._without_markers(text[at : match.start()], start=start and not tokens)
            tokens += self.lead_tokens if start and not tokens else ()
            tokens += self._spell(match[0])
            at = match.end()
        return tokens + self._without_markers(text[at:], start=start and not tokens)

    def _without_markers(self, text: bytes, *, start: bool) -> list[int]:
        """Tokens of text in which llama.cpp matches no marker, though it may merge one."""
        tokens = self._split(text, start=start, special=False)
        if self._is(tokens, text, start=start):
            return tokens
        result: list[int] = []
        for token in tokens:
            result += (
                self._spell(self.vocabulary.piece(token)) if self._forbidden[token] else [token]
            )
        if self._is(result, text, start=start):
            return result
        return [*(self.lead_tokens if start else ()), *self._spell(text)]

    def _is(self, tokens: list[int], text: bytes, *, start: bool) -> bool:
        """Whether the tokens are allowed in text, and are this text."""
        if not text:
            return not tokens
        wanted = self.lead + text if start else text
        return not self._forbidden[tokens].any() and self._bytes(tokens) == wanted

    def _spell(self, piece: bytes) -> list[int]:
        """Tokens of UTF-8 text, one character at a time, so that nothing in it is a marker."""
        tokens: list[int] = []
        for character in piece.decode("utf-8", "replace"):
            text = character.encode()
            single = [] if text == _SPACE_MARK else self._split(text, start=False, special=False)
            fits = bool(single) and self._is(single, text, start=False)
            tokens += single if fits else [self._byte(byte) for byte in text]
        return tokens

    def _byte(self, byte: int) -> int:
        try:
            return self.vocabulary.byte_ids[byte]
        except KeyError:
            raise UnspellableByte(byte) from None

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(map(self.vocabulary.piece, tokens))


def _whitespace_apart(vocabulary: Vocabulary) -> bytes:
    """White space that llama.cpp takes out of a text as tokens of their own, before all else.

    In Gemma's vocabulary line ends and tabs are USER_DEFINED, in runs of any length. What stands
    between them is tokenized piece by piece, in a time that grows with the square of their number.
    """
    user_defined = vocabulary.kinds == TokenKind.USER_DEFINED
    pieces = [vocabulary.piece(token) for token in np.flatnonzero(user_defined).tolist()]
    alone = {piece for piece in pieces if piece in (b"\n", b"\t")}
    mixed = {byte for byte in alone for piece in pieces if piece.strip(byte) and byte in piece}
    return b"".join(sorted(alone - mixed))


def _bytes_before_spaces(vocabulary: Vocabulary) -> frozenset[int]:
    """The bytes that stand directly in front of a space inside some piece."""
    found: set[bytes] = set()
    for piece, text in zip(vocabulary.pieces(), vocabulary.is_text.tolist(), strict=True):
        if text and b" " in piece[1:]:
            found.update(_TEXT_THEN_SPACE.findall(piece))
    return frozenset(byte for one in found for byte in one)


def _characters(text: bytes) -> Iterator[bytes]:
    """Characters of what is UTF-8, single bytes of what is not."""
    for part, valid in _utf8_parts(text):
        if valid:
            yield from map(str.encode, part.decode())
        else:
            yield from (part[at : at + 1] for at in range(len(part)))


def _utf8_parts(text: bytes) -> Iterator[tuple[bytes, bool]]:
    """Splits bytes into runs that are UTF-8 (True) and runs that are not (False)."""
    for run in _RUNS.findall(text.decode("utf-8", "surrogateescape")):
        yield run.encode("utf-8", "surrogateescape"), not "\udc80" <= run[0] <= "\udcff"
