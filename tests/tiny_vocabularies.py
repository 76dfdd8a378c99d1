"""Two small vocabularies as GGUF files hold them: byte-level BPE, and SentencePiece BPE."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from capt_local.tokenization import TokenKind

Flavour = Literal["bpe", "spm"]

MARKERS = ("<|im_start|>", "<|im_end|>")
USER_DEFINED = "<|channel|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "The patient was admitted with chest pain and shortness of breath. There was no fever. "
    "The patient takes aspirin and metoprolol for the heart. Blood pressure is stable today, "
    "and the pain in the chest is better than it was when the patient came to the hospital."
)


@dataclass(frozen=True)
class TinyVocabulary:
    """What the `tokenizer.ggml.*` entries of a file hold."""

    model: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    ids: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


def tiny_vocabulary(flavour: Flavour) -> TinyVocabulary:
    """The same words and markers in either flavour; about 400 tokens."""
    return _byte_level() if flavour == "bpe" else _sentencepiece()


def _byte_level() -> TinyVocabulary:
    shown = _shown_bytes()
    text = "".join(shown[byte] for byte in TEXT.encode())
    merges = _merges([part for part in text.replace("Ġ", " Ġ").split(" ") if part], 120)
    tokens = [shown[byte] for byte in range(256)] + [left + right for left, right in merges]
    kinds = [int(TokenKind.NORMAL)] * len(tokens)
    tokens += ["<|endoftext|>", *MARKERS, USER_DEFINED]
    kinds += [TokenKind.CONTROL] * 3 + [TokenKind.USER_DEFINED]
    ids = {"bos": tokens.index("<|endoftext|>"), "eos": tokens.index(MARKERS[1])}
    return TinyVocabulary(
        "gpt2", tokens, kinds, merges=[f"{left} {right}" for left, right in merges], ids=ids
    )


def _sentencepiece() -> TinyVocabulary:
    words = [f"▁{word}" for word in TEXT.split(" ")]
    merges = _merges(words, 120)
    letters = sorted({letter for word in words for letter in word})
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [int(TokenKind.UNKNOWN)] + [TokenKind.CONTROL] * 2 + [TokenKind.BYTE] * 256
    scores = [0.0] * len(tokens)
    for rank, (left, right) in enumerate(merges):
        tokens.append(left + right)
        scores.append(-float(rank))
    for letter in letters:
        tokens.append(letter)
        scores.append(-1000.0)
    kinds += [TokenKind.NORMAL] * (len(tokens) - len(kinds))
    tokens += [*MARKERS, USER_DEFINED]
    kinds += [TokenKind.CONTROL] * 2 + [TokenKind.USER_DEFINED]
    scores += [0.0] * 3
    ids = {"bos": 1, "eos": 2, "unknown": 0}
    return TinyVocabulary("llama", tokens, kinds, scores=scores, ids=ids)


def _merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges learned from words; ties go to the pair that sorts first."""
    split = [list(word) for word in words]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in split for pair in pairwise(word))
        if not pairs:
            break
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        split = [_merged(word, best) for word in split]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for letter in word:
        if result and (result[-1], letter) == pair:
            result[-1] += letter
        else:
            result.append(letter)
    return result


def _shown_bytes() -> list[str]:
    """The letters that byte-level BPE writes for the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
