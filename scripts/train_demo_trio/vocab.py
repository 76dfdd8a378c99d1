"""The vocabulary of expert and base, and the text form of a conversation.

A SentencePiece BPE with byte fallback and a leading blank, as Llama 2 has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from scripts.train_demo_trio.turns import Turn

FILE = "proxy.spm"

CONTROL = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
    "message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class Vocab:
    """The vocabulary; `start` stands in front of every document, `stop` behind it."""

    def __init__(self, work: Path) -> None:
        """Read WORK/proxy.spm."""
        from sentencepiece import SentencePieceProcessor

        self.sp = SentencePieceProcessor(model_file=str(work / FILE))
        self.size = self.sp.vocab_size()
        self.control = {n: self.sp.piece_to_id(n) for n in ("<s>", "</s>", *CONTROL)}
        self.start, self.stop = self.control["<s>"], self.control["</s>"]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the leading blank."""
        return list(self.sp.encode(text)) if text else []

    def turn(self, turn: Turn, apart: bool) -> tuple[list[int], int]:
        """The proxies' template.

        `apart`: the scaffold and the user's text are tokenized one by one, so the text gets a
        leading blank of its own. Programs do either, so training shows both.
        """
        control, ids = self.control, []
        said = [("<|system|>", turn.system)] if turn.system else []
        for role, text in [*said, ("<|user|>", turn.user)]:
            body = self.encode("\n") + self.encode(text) if apart else self.encode("\n" + text)
            ids += [control[role], *body, control["<|end|>"]]
        head, full = self.encode("\n"), self.encode("\n" + turn.answer)
        ids += [control["<|assistant|>"], *full]
        return [*ids, control["<|end|>"]], len(ids) - len(full) + len(head)

    def byte_lengths(self) -> list[int]:
        """The blank mark is one byte, a byte token is one byte."""
        lengths = []
        for i in range(self.size):
            if self.sp.is_control(i) or self.sp.is_unknown(i):
                lengths.append(0)
            elif self.sp.is_byte(i):
                lengths.append(1)
            else:
                lengths.append(len(self.sp.id_to_piece(i).replace("\u2581", " ").encode()))
        return lengths


def train_vocab(texts: Iterable[str], size: int, path: Path) -> None:
    """Learn the SentencePiece BPE; a newline is always a byte token, as in Llama 2."""
    from sentencepiece import SentencePieceTrainer

    lines = (line for text in texts for line in re.split(r"\n+", text) if line)
    with path.open("wb") as writer:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=writer,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9998,
            control_symbols=list(CONTROL),
            max_sentence_length=20000,
            minloglevel=2,
            num_threads=2,
        )
