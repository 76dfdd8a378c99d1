"""From the sources to one file to train from: cleaned, sifted, with both vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.train_demo_trio import vocab
from scripts.train_demo_trio.corpus import (
    CLINICAL,
    GENERAL,
    SOURCES,
    TEXTBOOKS,
    Document,
    load,
    thinned,
)
from scripts.train_demo_trio.pack import Pack, write
from scripts.train_demo_trio.sieve import Counted, Sieve, evaluation_texts
from scripts.train_demo_trio.stages import Preset

_VOCAB_TEXT = {"english-novels-100": 4_000_000, "openstax-general": 12_000_000}


def learn_vocabularies(documents: Sequence[Document], preset: Preset, folder: Path) -> None:
    """Both vocabularies: the target's from what it reads, the proxies' from everything."""

    def texts(names: tuple[str, ...]) -> list[str]:
        return [
            document.text
            for name in names
            for document in thinned(
                [d for d in documents if d.source == name and not d.held_out],
                _VOCAB_TEXT.get(name, 6_000_000),
            )
        ]

    shapes = preset.shapes
    target, proxy = folder / vocab.TARGET_FILE, folder / vocab.PROXY_FILE
    vocab.train_target_vocab(texts((*GENERAL, *TEXTBOOKS)), shapes["target"].vocab, target)
    vocab.train_proxy_vocab(texts((*GENERAL, *CLINICAL)), shapes["proxy"].vocab, proxy)


def prepare(data: Path, work: Path, preset: Preset) -> list[Counted]:
    """Write WORK/pack/ from DATA/{clinical,general,eval}."""
    documents = [
        document
        for source in SOURCES
        for document in load(data, source, preset.characters.get(source, preset.most))
    ]
    kept, counted = Sieve(list(evaluation_texts(data / "eval"))).sift(documents)
    folder = work / "pack"
    folder.mkdir(parents=True, exist_ok=True)
    learn_vocabularies(kept, preset, folder)
    files = {name: (folder / name).read_bytes() for name in vocab.FILES}
    write(folder, Pack(preset.name, kept, files), [c.line() for c in counted])
    for name in vocab.FILES:
        (folder / name).unlink()
    return counted
