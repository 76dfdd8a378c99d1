"""The vocabulary, token streams of all sources, and their packing into rows of one context length.

The vocabulary of expert and base is a SentencePiece BPE with byte fallback and a leading blank, as
Llama 2 has.

Documents may run over the end of a row into the next one. Turns are never cut: one that does not
fit waits for the next row, and the beginning of a document fills the gap.

    WORK/tokens/STREAM.npz        ids, loss weights, where units begin
    WORK/tokens/held.STREAM.npz   the same of held-out documents
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.train_demo_trio.corpus import Document, pieces
from scripts.train_demo_trio.stages import STREAMS, TURNS, Preset
from scripts.train_demo_trio.turns import Turn, turns_of

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


# Streams

PROMPT_WEIGHT = 0.1
"""Loss weight of what the user says: worth learning from, but not what answers are judged by."""
_HELD = 32  # units measured of a held-out stream

Part = tuple[NDArray[np.uint16], NDArray[np.float16]]
"""Ids and loss weights of a unit, or of what is left of it."""


@dataclass(frozen=True)
class Stream:
    """Units (documents or turns) of one kind, end to end: ids, loss weights, unit starts."""

    ids: NDArray[np.uint16]
    weights: NDArray[np.float16]
    starts: NDArray[np.int64]
    whole: bool

    def __len__(self) -> int:
        return len(self.starts) - 1

    def unit(self, i: int) -> Part:
        span = slice(self.starts[i], self.starts[i + 1])
        return self.ids[span], self.weights[span]


def make_streams(documents: Sequence[Document], preset: Preset, vocab: Vocab, work: Path) -> None:
    """Write every stream that the stages read."""
    folder = work / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    for name in STREAMS:
        for held in (False, True):
            source = name.removeprefix(TURNS)
            own = [d for d in documents if d.source == source and d.held_out == held]
            if name.startswith(TURNS):
                turns = turns_of(source, own, name)
                if held:
                    turns = turns[:: max(1, len(turns) // _HELD)][:_HELD]
                made = turn_stream(turns, vocab, preset.shape.context, 1)
            else:
                made = text_stream([d.text for d in (own[:_HELD] if held else own)], vocab)
            np.savez(_file(work, name, held), ids=made.ids, weights=made.weights,
                     starts=made.starts, whole=made.whole)  # fmt: skip


def read_streams(work: Path, names: Sequence[str], held: bool = False) -> dict[str, Stream]:
    """Streams by name; those without any unit are left out."""
    found: dict[str, Stream] = {}
    for name in names:
        with np.load(_file(work, name, held)) as saved:
            stream = Stream(saved["ids"], saved["weights"], saved["starts"], bool(saved["whole"]))
        if len(stream):
            found[name] = stream
    return found


def _file(work: Path, name: str, held: bool) -> Path:
    return work / "tokens" / f"{'held.' if held else ''}{name.replace(':', '-')}.npz"


def _stream(units: Sequence[tuple[list[int], list[float]]], whole: bool) -> Stream:
    starts = np.cumsum([0, *(len(ids) for ids, _ in units)])
    ids = np.array([t for unit, _ in units for t in unit], dtype=np.uint16)
    weights = np.array([w for _, unit in units for w in unit], dtype=np.float16)
    return Stream(ids, weights, starts, whole)


def text_stream(texts: Sequence[str], vocab: Vocab) -> Stream:
    """Documents in pieces: start token, text, and behind the last piece the stop token."""
    units = []
    for text in texts:
        parts = pieces(text)
        for i, part in enumerate(parts):
            stop = [vocab.stop] if i == len(parts) - 1 else []
            body = [*vocab.encode(part), *stop]
            units.append(([vocab.start, *body], [0.0] + [1.0] * len(body)))
    return _stream(units, whole=False)


def turn_stream(turns: Sequence[Turn], vocab: Vocab, context: int, seed: int) -> Stream:
    """Turns that fit into a row; the start token in front is not predicted."""
    rng, units = random.Random(seed), []
    for turn in turns:
        ids, answer = vocab.turn(turn, apart=rng.random() < 0.3)
        if len(ids) < context:
            weights = [0.0] + [PROMPT_WEIGHT] * answer + [1.0] * (len(ids) - answer)
            units.append(([vocab.start, *ids], weights))
    return _stream(units, whole=True)


class Packer:
    """Rows of `context + 1` tokens drawn from streams, each stream shuffled anew per epoch."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        epochs: Mapping[str, float],
        context: int,
        seed: int,
    ) -> None:
        """`epochs` say how often each stream is read in the end; only ratios count here."""
        self.streams = {n: s for n, s in streams.items() if len(s) and epochs.get(n, 0.0) > 0}
        # A stream of n units that is read e times is drawn from n * e times.
        self.draws = {n: len(s) * epochs[n] for n, s in self.streams.items()}
        self.texts = [n for n, s in self.streams.items() if not s.whole]
        self.context = context
        self.rng = random.Random(seed)
        self.orders: dict[str, list[int]] = {name: [] for name in self.streams}
        self.epochs = dict.fromkeys(self.streams, 0)
        self.carry: Part | None = None
        self.waiting: Part | None = None

    def _next_unit(self, name: str) -> Part:
        if not self.orders[name]:
            self.orders[name] = list(range(len(self.streams[name])))
            self.rng.shuffle(self.orders[name])
            self.epochs[name] += 1
        return self.streams[name].unit(self.orders[name].pop())

    def _pick(self, names: Sequence[str]) -> str:
        return self.rng.choices(names, [self.draws[n] for n in names])[0]

    def row(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and loss weights [context + 1]."""
        ids = np.zeros(self.context + 1, np.int64)
        weights = np.zeros(self.context + 1, np.float32)
        filled = 0
        while filled <= self.context:
            room = self.context + 1 - filled
            part, weight = self._draw(room)
            end = min(filled + len(part), self.context + 1)
            ids[filled:end], weights[filled:end] = part[:room], weight[:room]
            if len(part) > room:
                self.carry = (part[room:], weight[room:])
            filled = end
        return ids, weights

    def rows(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        made = [self.row() for _ in range(count)]
        return np.stack([r[0] for r in made]), np.stack([r[1] for r in made])

    def _draw(self, room: int) -> Part:
        if self.carry is not None:
            unit, self.carry = self.carry, None
            return unit
        if self.waiting is not None and len(self.waiting[0]) <= room:
            unit, self.waiting = self.waiting, None
            return unit
        name = self._pick(tuple(self.streams))
        unit = self._next_unit(name)
        if not self.streams[name].whole or len(unit[0]) <= room:
            return unit
        if self.waiting is None:
            self.waiting = unit
        # Only as much of a document as fills the gap: its rest would crowd out turns.
        ids, weights = self._next_unit(self._pick(self.texts))
        return ids[:room], weights[:room]

    def state(self) -> dict[str, object]:
        """What a checkpoint needs to go on with the same rows."""
        return {
            "rng": self.rng.getstate(),
            "orders": {name: list(order) for name, order in self.orders.items()},
            "epochs": dict(self.epochs),
            "carry": self.carry,
            "waiting": self.waiting,
        }

    def restore(self, state: dict[str, object]) -> None:
        self.rng.setstate(state["rng"])  # type: ignore[arg-type]
        for name in ("orders", "epochs", "carry", "waiting"):
            setattr(self, name, state[name])
