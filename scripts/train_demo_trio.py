"""Train the demo trio and export it as GGUF.

One command does everything, in order:

    python scripts/train_demo_trio.py DATA_DIR --out models/demo [--minutes 80] [--device auto]

DATA_DIR holds {clinical,general}/SOURCE.jsonl[.xz] (see scripts/trio/corpus.py). Needs
`torch numpy gguf tokenizers sentencepiece`, and a C++ compiler unless --no-compile is given.
The target trains beside base and expert, each on one core; a stage that was stopped goes on from
its last checkpoint when it is called again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

STAGES = ("vocab", "target", "base", "expert", "export")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the training text")
    parser.add_argument("--out", type=Path, required=True, help="folder for the GGUF files")
    parser.add_argument("--work", type=Path, help="folder for checkpoints (build/trio-OUT)")
    parser.add_argument("--minutes", type=float, default=80.0, help="time budget of the training")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a trio for tests, in about a minute")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--type", default="f16", choices=("q8_0", "f16"), help="weights in GGUF")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    return parser.parse_args(argv)


def make_vocabs(args: argparse.Namespace) -> None:
    """Learn both vocabularies: the target's on its own text, the proxies' on all text."""
    from trio import corpus, presets, vocab

    preset = presets.TINY if args.tiny else presets.DEMO

    def texts(names: tuple[str, ...], share: dict[str, int]) -> list[str]:
        return [
            d.text
            for n in names
            for d in corpus.load(args.data, n, min(share.get(n, 6_000_000), limit(n)), args.seed)
            if not d.held_out
        ]

    def limit(name: str) -> int:
        return preset.characters.get(name, 10**9)

    plans, novels = preset.plans, {"english-novels-100": 4_000_000}
    books = texts((*corpus.GENERAL, *corpus.TEXTBOOKS), {**novels, "openstax-general": 12_000_000})
    size = plans["target"].shape.vocab
    vocab.train_target_vocab(books, size, args.work / "target.tokenizer.json")
    mixed = texts((*corpus.GENERAL, *corpus.CLINICAL), novels)
    size = plans["base"].shape.vocab
    vocab.train_proxy_vocab(mixed, size, args.work / "proxy.spm")


def train(args: argparse.Namespace, role: str) -> None:
    """Train one model."""
    import torch
    from trio import presets
    from trio.train import Trainer, make_streams
    from trio.vocab import ProxyVocab, TargetVocab

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    preset = presets.TINY if args.tiny else presets.DEMO
    plan = preset.plans[role]
    target = role == "target"
    vocab = (
        TargetVocab(args.work / "target.tokenizer.json")
        if target
        else ProxyVocab(args.work / "proxy.spm")
    )
    streams = make_streams(args.data, preset, plan, vocab, args.seed)
    for name, stream in streams[0].items():
        print(f"{role}: {name}: {len(stream):,} units, {len(stream.ids):,} tokens", flush=True)
    trainer = Trainer(
        role,
        plan,
        vocab,
        args.work,
        device=args.device,
        compiled=not (args.no_compile or args.tiny),
    )
    trainer.run(streams, args.minutes * plan.minutes_share, args.seed)


def run_all(args: argparse.Namespace, argv: list[str]) -> None:
    """Every stage; the target in a process beside the two proxies."""

    def stage(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, *argv, "--stage", name])

    def finish(process: subprocess.Popen[bytes]) -> None:
        if process.wait():
            raise SystemExit(f"a stage failed: {process.args!r}")

    if not (args.work / "proxy.spm").exists():
        finish(stage("vocab"))
    beside = stage("target")
    try:
        for name in ("base", "expert"):
            finish(stage(name))
        finish(beside)
    finally:
        beside.terminate()
    finish(stage("export"))


def main(argv: list[str] | None = None) -> None:
    """Run one stage or all."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    args.work = args.work or Path("build") / f"trio-{args.out.name}"
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "all":
        run_all(args, argv)
    elif args.stage == "vocab":
        make_vocabs(args)
    elif args.stage == "export":
        from trio.export import export_trio
        from trio.manifest import write_bundle

        export_trio(args.work, args.out, args.type)
        write_bundle(args.out)
    else:
        train(args, args.stage)


if __name__ == "__main__":
    main()
