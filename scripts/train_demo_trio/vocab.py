"""The two vocabularies of the trio and the text form of a conversation.

They differ on purpose, as the models of real pairs do: the target has a byte-level BPE with
Qwen2's pre-tokenizer (every digit its own token), the proxies share a SentencePiece BPE with byte
fallback and a leading blank, as Llama 2 has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import sentencepiece as spm
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.train_demo_trio.turns import Turn

TARGET_FILE, PROXY_FILE = "target.tokenizer.json", "proxy.spm"
FILES = (TARGET_FILE, PROXY_FILE)

# llama.cpp, llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2: the two must agree to the letter.
QWEN2_SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TARGET_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PROXY_CONTROL = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TARGET_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROXY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
    "message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class Vocab(Protocol):
    """What packing, export and checks need of a vocabulary."""

    size: int
    start: int
    """Token in front of every document."""
    stop: tuple[int, ...]
    """Tokens behind a document; empty where `start` of the next one says it."""
    control: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are only text."""
        ...

    def turn(self, turn: Turn, apart: bool) -> tuple[list[int], int]:
        """Token ids of an exchange and where its answer begins."""
        ...

    def byte_lengths(self) -> list[int]:
        """Bytes that each token stands for (control tokens: 0)."""
        ...


class TargetVocab:
    """Byte-level BPE of the target."""

    def __init__(self, path: Path) -> None:
        """Read a `tokenizer.json`."""
        self.path = path
        self.hf = Tokenizer.from_file(str(path))
        self.size = self.hf.get_vocab_size()
        self.control = {name: self.hf.token_to_id(name) for name in TARGET_CONTROL}
        self.start = self.control["<|endoftext|>"]
        self.stop: tuple[int, ...] = ()
        self.hf.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.hf.encode(text, add_special_tokens=False).ids)

    def turn(self, turn: Turn, apart: bool) -> tuple[list[int], int]:
        """ChatML; `apart` makes no difference, since a newline ends a pre-token here."""
        begin, end = self.control["<|im_start|>"], self.control["<|im_end|>"]
        ids: list[int] = []
        said = [("system", turn.system)] if turn.system else []
        for role, text in [*said, ("user", turn.user)]:
            ids += [begin, *self.encode(f"{role}\n{text}"), end, *self.encode("\n")]
        ids += [begin, *self.encode("assistant\n")]
        return [*ids, *self.encode(turn.answer), end], len(ids)

    def byte_lengths(self) -> list[int]:
        """One character of a byte-level piece is one byte."""
        known = set(self.control.values())
        pieces = (self.hf.id_to_token(i) for i in range(self.size))
        return [0 if i in known else len(p) for i, p in enumerate(pieces)]


class ProxyVocab:
    """SentencePiece BPE of the expert and the base."""

    def __init__(self, path: Path) -> None:
        """Read a SentencePiece model."""
        self.path = path
        self.sp = spm.SentencePieceProcessor(model_file=str(path))
        self.size = self.sp.vocab_size()
        self.control = {n: self.sp.piece_to_id(n) for n in ("<s>", "</s>", *PROXY_CONTROL)}
        self.start, self.stop = self.control["<s>"], (self.control["</s>"],)

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


def open_vocab(role: str, folder: Path) -> TargetVocab | ProxyVocab:
    """The vocabulary of "target" or "proxy"."""
    if role == "target":
        return TargetVocab(folder / TARGET_FILE)
    return ProxyVocab(folder / PROXY_FILE)


def write_vocabs(files: Mapping[str, bytes], folder: Path) -> Path:
    """Puts the vocabularies of a pack into a folder, and returns it."""
    for name in FILES:
        (folder / name).write_bytes(files[name])
    return folder


def train_target_vocab(texts: Iterable[str], size: int, path: Path) -> None:
    """Learn the byte-level BPE; control tokens come last, as in Qwen2."""
    hf = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(TARGET_CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    hf.train_from_iterator(texts, trainer)
    hf.add_special_tokens(list(TARGET_CONTROL))
    hf.save(str(path))


def train_proxy_vocab(texts: Iterable[str], size: int, path: Path) -> None:
    """Learn the SentencePiece BPE; a newline is always a byte token, as in Llama 2."""
    lines = (line for text in texts for line in re.split(r"\n+", text) if line)
    with path.open("wb") as writer:
        spm.SentencePieceTrainer.train(
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
            control_symbols=list(PROXY_CONTROL),
            max_sentence_length=20000,
            minloglevel=2,
            num_threads=2,
        )
