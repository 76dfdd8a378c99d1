"""Token streams of both vocabularies, made once from a pack by several processes.

WORK/tokens/ROLE.STREAM.npz        ids, loss weights, where units begin
WORK/tokens/held.ROLE.STREAM.npz   the same of held-out documents
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.train_demo_trio.batches import Stream, joined, text_stream, turn_stream
from scripts.train_demo_trio.clinical_turns import turns_of
from scripts.train_demo_trio.corpus import Document
from scripts.train_demo_trio.pack import Pack
from scripts.train_demo_trio.stages import STREAMS, TURNS, Preset
from scripts.train_demo_trio.vocab import open_vocab, write_vocabs

_CHUNK = 2_000_000  # characters that a process is given at once
_HELD = 32  # units measured of a held-out stream


@dataclass(frozen=True, slots=True)
class Chunk:
    """Documents of one source that become a part of one stream."""

    role: str
    stream: str
    documents: Sequence[Document]
    number: int
    held: bool
    context: int
    vocabs: Path
    seed: int

    @property
    def file(self) -> str:
        """Name of the stream's file, without its ending."""
        return ("held." if self.held else "") + f"{self.role}.{self.stream.replace(':', '-')}"


def _encode(chunk: Chunk) -> Stream:
    vocab = open_vocab(chunk.role, chunk.vocabs)
    if not chunk.stream.startswith(TURNS):
        texts = [document.text for document in chunk.documents]
        return text_stream(texts[:_HELD] if chunk.held else texts, vocab)
    turns = turns_of(chunk.documents, f"{chunk.seed}/{chunk.stream}/{chunk.number}")
    if chunk.held:
        turns = turns[:: max(1, len(turns) // _HELD)][:_HELD]
    return turn_stream(turns, vocab, chunk.context, chunk.seed + chunk.number)


def _chunks(pack: Pack, preset: Preset, vocabs: Path, seed: int) -> Iterator[Chunk]:
    by_source: dict[tuple[str, bool], list[list[Document]]] = defaultdict(lambda: [[]])
    sizes: dict[tuple[str, bool], int] = defaultdict(int)
    for document in pack.documents:
        key = (document.source, document.held_out)
        if sizes[key] > _CHUNK and not document.held_out:
            by_source[key].append([])
            sizes[key] = 0
        by_source[key][-1].append(document)
        sizes[key] += len(document.text)
    for role, streams in STREAMS.items():
        context = preset.shapes[role].context
        for stream in streams:
            for held in (False, True):
                parts = by_source[stream.removeprefix(TURNS), held]
                for number, part in enumerate(parts):
                    yield Chunk(role, stream, part, number, held, context, vocabs, seed)


def make_tokens(pack: Pack, preset: Preset, work: Path, jobs: int, seed: int) -> None:
    """Write all streams that the stages read; `jobs` processes."""
    folder = tokens_folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    vocabs = write_vocabs(pack.files, work)
    parts: dict[str, list[Stream]] = defaultdict(list)
    chunks = list(_chunks(pack, preset, vocabs, seed))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    with ProcessPoolExecutor(jobs) as pool:
        for chunk, stream in zip(chunks, pool.map(_encode, chunks), strict=True):
            parts[chunk.file].append(stream)
    for name, streams in parts.items():
        whole = joined(streams)
        np.savez(folder / f"{name}.npz", ids=whole.ids, weights=whole.weights,
                 starts=whole.starts, whole=whole.whole)  # fmt: skip
    (folder / "done").touch()


def tokens_folder(work: Path) -> Path:
    """Where the streams are."""
    return work / "tokens"


def have_tokens(work: Path) -> bool:
    """Whether all streams were made."""
    return (tokens_folder(work) / "done").exists()


def read_streams(
    work: Path, role: str, streams: Sequence[str], held: bool = False
) -> dict[str, Stream]:
    """Streams by name; those without any unit are left out."""
    found: dict[str, Stream] = {}
    for name in streams:
        file = f"{'held.' if held else ''}{role}.{name.replace(':', '-')}.npz"
        with np.load(tokens_folder(work) / file) as saved:
            stream = Stream(saved["ids"], saved["weights"], saved["starts"], bool(saved["whole"]))
        if len(stream):
            found[name] = stream
    return found


def counts(work: Path) -> dict[str, dict[str, int]]:
    """Tokens of every stream, by role."""
    return {
        role: {name: len(stream.ids) for name, stream in read_streams(work, role, names).items()}
        for role, names in STREAMS.items()
    }
