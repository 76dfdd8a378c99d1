"""Train expert and base of the demo from text to GGUF files.

    python -m scripts.train_demo_trio prepare DATA --work W [--preset cpu]
    python -m scripts.train_demo_trio train --work W [--stages ...]      again to go on
    python -m scripts.train_demo_trio export --work W OUT                as F16
    python -m scripts.train_demo_trio quantize OUT SMALL --type q8_0

DATA holds {clinical,general}/SOURCE.jsonl[.xz] and eval/*.jsonl. Needs the extra "train". The
preset demo wants a GPU. The target of the demo is a published model (models/demo/MODEL_CARDS.md).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.train_demo_trio.corpus import (
    CLINICAL,
    GENERAL,
    SOURCES,
    Document,
    Sieve,
    evaluation_texts,
    load,
    thinned,
)
from scripts.train_demo_trio.stages import PRESETS, STAGES, Preset

_VOCAB_TEXT = {"english-novels-100": 4_000_000, "openstax-general": 12_000_000}


def prepare(data: Path, work: Path, name: str) -> None:
    """Text to token streams, without what stands in evaluation files."""
    from scripts.train_demo_trio.streams import make_streams
    from scripts.train_demo_trio.vocab import FILE, Vocab, train_vocab

    preset = PRESETS[name]
    work.mkdir(parents=True, exist_ok=True)
    documents = [d for source in SOURCES for d in load(data, source, preset.limit(source))]
    kept = Sieve(list(evaluation_texts(data / "eval"))).sift(documents)
    for source in SOURCES:
        own = [d for d in kept if d.source == source]
        characters = sum(len(d.text) for d in own) / 1e6
        print(f"{source:28} {len(own):7,} documents, {characters:7.2f} M characters")
    train_vocab(_vocabulary_texts(kept), preset.shape.vocab, work / FILE)
    make_streams(kept, preset, Vocab(work), work)
    (work / "preset").write_text(name, encoding="utf-8")


def _vocabulary_texts(documents: Sequence[Document]) -> list[str]:
    return [
        document.text
        for name in (*GENERAL, *CLINICAL)
        for document in thinned(
            [d for d in documents if d.source == name and not d.held_out],
            _VOCAB_TEXT.get(name, 6_000_000),
        )
    ]


def train(
    work: Path, stages: Sequence[str], device: str, threads: int, minutes: float, steps: int
) -> None:
    """The stages that are not done, one after the other."""
    import torch

    from scripts.train_demo_trio.train import Trainer, is_done

    torch.set_num_threads(threads)
    preset, stop_at = preset_of(work), time.time() + 60 * minutes
    tokens = steps * preset.rows * preset.shape.context
    for name in stages:
        if not is_done(work, name) and not Trainer(STAGES[name], preset, work, device=device).run(
            stop_at, tokens
        ):
            print(f"not done yet, run again: {name}")
            return
    print("all stages are done")


def preset_of(work: Path) -> Preset:
    """The preset that a folder was prepared for."""
    return PRESETS[(work / "preset").read_text("utf-8")]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    part = verbs.add_parser("prepare")
    part.add_argument("data", type=Path)
    part.add_argument("--work", type=Path, required=True)
    part.add_argument("--preset", choices=PRESETS, default="demo")
    part = verbs.add_parser("train")
    part.add_argument("--work", type=Path, required=True)
    part.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES)[:3])
    part.add_argument("--device", default="auto", help="auto, cpu or cuda")
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--minutes", type=float, default=math.inf, help="save and end after so long")
    part.add_argument("--steps", type=int, default=0, help="of each stage, to try it")
    part = verbs.add_parser("export")
    part.add_argument("out", type=Path)
    part.add_argument("--work", type=Path, required=True)
    part.add_argument("--expert", choices=STAGES, default="expert-tune", help="its stage")
    part.add_argument("--base", choices=STAGES, default="base", help="its stage")
    part = verbs.add_parser("quantize")
    part.add_argument("f16", type=Path)
    part.add_argument("out", type=Path)
    part.add_argument("--type", default="q8_0")
    given = parser.parse_args(argv)
    if given.verb == "prepare":
        prepare(given.data, given.work, given.preset)
    elif given.verb == "train":
        train(given.work, given.stages, given.device, given.threads, given.minutes, given.steps)
    elif given.verb == "export":
        from scripts.train_demo_trio.export import export

        export(given.work, given.out, {"expert": given.expert, "base": given.base})
    else:
        from scripts.train_demo_trio.export import quantize

        given.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(given.f16.glob("*.gguf")):
            quantize(path, given.out / path.name, given.type)


if __name__ == "__main__":
    main()
