"""Tokens as strings, and one piece for a string: the alignment of UniTE and of published CAPT.

This is what the methods that capt-local is compared with do, defects included (docs/method.md);
capt-local itself aligns by bytes, see `alignment.projection`. Followed are `get_top_k_tokens` and
`update_vocab` of UniTE (Yao et al. 2025), as the authors of CAPT (Ronaghi et al. 2026) took them
over in their `proxy_tuning_client.py`.
"""

from __future__ import annotations

from functools import cached_property

from capt_local.tokenization.tokenizer import Tokenize
from capt_local.tokenization.vocabulary import TokenKind, Vocabulary

# A space inside a token, as SentencePiece and as byte-level BPE write it.
_MARK, _LETTER = "\u2581", "\u0120"
# A newline, likewise; and what the published code makes of both. (It means "\n".)
_NEWLINES = ("<0x0A>", "\u010a")
_SLASH_N = "/n"
# The published code takes this id for "not in the vocabulary", as in Llama-2 and Mistral.
_UNKNOWN = 0


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
        found = self._pieces.get(key)
        if found is None:
            found = self._pieces[key] = self._find(key)
        return found

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


def _byte_letters() -> dict[int, int]:
    """The letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: 256 + place for place, byte in enumerate(others)}


_LETTERS = _byte_letters()
