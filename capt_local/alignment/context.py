"""A proxy's tokens for a growing text: always the tokens that its own tokenizer would choose.

When a text grows, its last tokens may change ("card" + "iac" may become "cardiac"), the earlier
ones do not. Only the text behind the last safe cut is tokenized again; where a text has none for
long (Chinese, a table without spaces), tokens far behind its end are final, so that a step does not
cost more and more.
"""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.tokenization.tokenizer import TextTokenizer

# No piece that matters begins so far back.
_LONGEST_REST = 24
# Without a safe cut in so many bytes the tokens before the last so many are final.
_LONGEST_TAIL, _OPEN_TAIL = 1024, 256


def rests(pieces: Sequence[bytes]) -> list[bytes]:
    """Bytes of the last piece, of the last two, ..., as far back as a longer piece may begin."""
    found: list[bytes] = []
    rest = b""
    for piece in reversed(pieces):
        rest = piece + rest
        if len(rest) > _LONGEST_REST:
            break
        found.append(rest)
    return found


def _boundary(tail: bytes, pieces: Sequence[bytes]) -> int:
    """Where a token begins, and a character, at least `_OPEN_TAIL` bytes before the end."""
    at = len(tail)
    for piece in reversed(pieces):
        at -= len(piece)
        if 0 < at <= len(tail) - _OPEN_TAIL and tail[at] & 0xC0 != 0x80:
            return at
    return 0


class CanonicalContext:
    """Fixed tokens in front, and the canonical tokens of a text that grows behind them.

    A tokenizer that puts a space in front of a text is met half-way: before the text begins, the
    context already holds that space as a piece, so that healing can take it for what it is, the
    beginning of the first word.

    Args:
        tokenizer: of the proxy.
        head: tokens that stay (scaffolding, earlier turns).
        text: what the growing text holds already.
        start: whether the text begins a sequence or follows a control token.

    Attributes:
        tokens: all tokens now; do not change it.
        fixed: number of tokens in `head`.
        unseen: whether bytes were left out that the vocabulary cannot spell.
    """

    def __init__(
        self, tokenizer: TextTokenizer, head: Sequence[int], text: bytes = b"", *, start: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self.fixed = len(head)
        self.unseen = False
        self.tokens = list(head)
        self._text = b""
        self._cut = 0
        self._cut_tokens = self.fixed
        self._whole = True
        self._rests: tuple[int, list[bytes]] = (0, [])
        self.append(text)

    @property
    def text(self) -> bytes:
        """The growing text, without the head and without a leading space of the tokenizer."""
        return self._text

    @property
    def stable(self) -> int:
        """How many tokens at the front stay as they are, whatever text comes."""
        return self._cut_tokens

    def rests(self, depth: int) -> list[bytes]:
        """Bytes of the last token of the growing text, of the last two, ...; at most `depth`.

        The first token of all has nothing before it and is left out.
        """
        if depth != self._rests[0]:
            last = self.tokens[max(self.fixed, 1, len(self.tokens) - depth) :]
            self._rests = depth, rests(list(map(self._tokenizer.vocabulary.piece, last)))
        return self._rests[1]

    def append(self, text: bytes) -> int:
        """Adds text; returns how many tokens at the front stayed as they were."""
        if self._goes_on_at_cut(text):
            self._cut, self._cut_tokens = len(self._text), len(self.tokens)
        self._text += text
        return self._replace_tail()

    def _goes_on_at_cut(self, text: bytes) -> bool:
        """Whether the tokens that are there stay as they are, whatever comes with `text`."""
        tail = self._text[self._cut :]
        seam = tail[-1:] + text[:1]
        return bool(tail) and self._whole and self._tokenizer.last_cut(seam) == 1

    def _replace_tail(self) -> int:
        self._rests = 0, []
        tail = self._text[self._cut :]
        first = self._start and self._cut == 0
        new, whole = self._encode(tail, first=first)
        self._whole = whole
        if not self._text and first and self._tokenizer.lead:
            new = list(self._tokenizer.lead_tokens)
        kept = self._cut_tokens
        old = self.tokens[kept:]
        same = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        self.tokens[kept + same :] = new[same:]
        if self._text and whole:
            self._advance_cut(tail, new)
        return kept + same

    def _encode(self, tail: bytes, *, first: bool) -> tuple[list[int], bool]:
        """The tokens of a tail, and whether they hold all of its bytes."""
        if not tail:
            return [], True
        # The answer is not the proxy's: what it has no token for, it does not see.
        tokens, whole = self._tokenizer.encode_known(tail, start=first)
        self.unseen |= not whole
        return tokens, whole

    def _advance_cut(self, tail: bytes, new: list[int]) -> None:
        """Moves the safe cut forward, to a place where a token begins."""
        cut = self._tokenizer.last_cut(tail)
        # Counted from the end, where no leading space of the tokenizer can be.
        piece = self._tokenizer.vocabulary.piece
        if not cut and len(tail) > _LONGEST_TAIL:
            cut = _boundary(tail, list(map(piece, new)))
        if not cut:
            return
        behind = len(tail) - cut
        for count in range(len(new), 0, -1):
            if behind <= 0:
                break
            behind -= len(piece(new[count - 1]))
        else:
            count = 0
        if behind == 0:
            self._cut += cut
            self._cut_tokens += count
