"""Train expert and base of the demo from text to GGUF files.

    python -m scripts.train_demo_trio prepare DATA --work W [--preset cpu]
    python -m scripts.train_demo_trio train --work W [--stages ...]      again to go on
    python -m scripts.train_demo_trio export --work W OUT                as F16
    python -m scripts.train_demo_trio quantize OUT SMALL --type q8_0

DATA holds {clinical,general}/SOURCE.jsonl[.xz] and eval/*.jsonl. Needs the extra "train". The
preset demo wants a GPU. The target of the demo is a published model (models/demo/MODEL_CARDS.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from scripts.train_demo_trio.corpus import (
    CLINICAL,
    GENERAL,
    SOURCES,
    Document,
    evaluation_texts,
    load,
    sift,
    thinned,
)
from scripts.train_demo_trio.stages import PRESETS, STAGES

_VOCAB_TEXT = {"english-novels-100": 4_000_000, "openstax-general": 12_000_000}


app = typer.Typer(help=__doc__)
Work = Annotated[Path, typer.Option()]
StageName = Literal["base", "expert-pretrain", "expert-tune"]


@app.command()
def prepare(data: Path, work: Work, preset: Literal["demo", "cpu", "tests"] = "demo") -> None:
    """Text to token streams, without what stands in evaluation files."""
    from scripts.train_demo_trio.streams import FILE, Vocab, make_streams, train_vocab

    plan = PRESETS[preset]
    work.mkdir(parents=True, exist_ok=True)
    documents = [d for source in SOURCES for d in load(data, source, plan.limit(source))]
    kept = sift(documents, evaluation_texts(data / "eval"))
    for source in SOURCES:
        own = [d for d in kept if d.source == source]
        characters = sum(len(d.text) for d in own) / 1e6
        print(f"{source:28} {len(own):7,} documents, {characters:7.2f} M characters")
    train_vocab(_vocabulary_texts(kept), plan.shape.vocab, work / FILE)
    make_streams(kept, plan, Vocab(work), work)
    (work / "preset").write_text(preset, encoding="utf-8")


def _vocabulary_texts(documents: Sequence[Document]) -> list[str]:
    return [
        document.text
        for name in (*GENERAL, *CLINICAL)
        for document in thinned(
            [d for d in documents if d.source == name and not d.held_out],
            _VOCAB_TEXT.get(name, 6_000_000),
        )
    ]


@app.command()
def train(
    work: Work,
    stages: list[StageName] | None = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: int = 1,
    minutes: Annotated[float, typer.Option(help="save and end after so long")] = math.inf,
    steps: Annotated[int, typer.Option(help="of each stage, to try it")] = 0,
) -> None:
    """The stages that are not done, one after the other."""
    import torch

    from scripts.train_demo_trio.train import Trainer, is_done

    torch.set_num_threads(threads)
    preset, stop_at = PRESETS[(work / "preset").read_text("utf-8")], time.time() + 60 * minutes
    tokens = steps * preset.rows * preset.shape.context
    for name in stages or STAGES:
        if not is_done(work, name) and not Trainer(STAGES[name], preset, work, device=device).run(
            stop_at, tokens
        ):
            print(f"not done yet, run again: {name}")
            return
    print("all stages are done")


@app.command()
def export(
    out: Path, work: Work, expert: StageName = "expert-tune", base: StageName = "base"
) -> None:
    """Writes the checkpoints of two stages as F16."""
    from scripts.train_demo_trio.export import export

    export(work, out, {"expert": expert, "base": base})


@app.command()
def quantize(f16: Path, out: Path, type: str = "q8_0") -> None:
    """Writes all files of a folder with fewer bits."""
    from scripts.train_demo_trio.export import quantize

    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(f16.glob("*.gguf")):
        quantize(path, out / path.name, type)


if __name__ == "__main__":
    app()
