"""Train the demo trio, and the trio of the tests, from text to GGUF files.

    python -m scripts.train_demo_trio prepare DATA --work W      text -> W/pack (one file to carry)
    python -m scripts.train_demo_trio train --work W             all stages; again to go on
    python -m scripts.train_demo_trio export --work W OUT        the trio as F16
    python -m scripts.train_demo_trio quantize --work W OUT SMALL --type q6_k
    python -m scripts.train_demo_trio evaluate OUT --eval DATA/eval --out TABLES
    python -m scripts.train_demo_trio ask OUT                    twenty prompts, side by side

DATA holds {clinical,general}/SOURCE.jsonl[.xz] and eval/*.jsonl. Needs the extra "train". Run with
--preset cpu on a CPU; the preset demo wants a GPU. On a machine without the text, carry W/pack
there, train, and bring the weights back with `deliver` and `receive`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripts.train_demo_trio import pack
from scripts.train_demo_trio.stages import PRESETS, STAGES, Preset

Verb = Callable[[argparse.Namespace], None]


def _preset(args: argparse.Namespace) -> Preset:
    preset = PRESETS[pack.preset_of(args.pack or args.work / "pack")]
    return replace(preset, scale=preset.scale * getattr(args, "scale", 1.0))


def prepare(args: argparse.Namespace) -> None:
    """Text to pack."""
    from scripts.train_demo_trio.prepare import prepare as make

    for counted in make(args.data, args.work, PRESETS[args.preset]):
        print(counted.line())
    size = (args.work / "pack" / pack.NAME).stat().st_size
    print(f"{args.work / 'pack' / pack.NAME}: {size / 2**20:.1f} MiB")


def tokens(args: argparse.Namespace) -> None:
    """Pack to token streams, and what training on them will cost."""
    from scripts.train_demo_trio import schedule
    from scripts.train_demo_trio.tokens import counts, have_tokens, make_tokens

    args.work.mkdir(parents=True, exist_ok=True)
    preset = _preset(args)
    if not have_tokens(args.work):
        read = pack.read(args.pack or args.work / "pack")
        make_tokens(read, preset, args.work, args.jobs or os.cpu_count() or 1, args.seed)
    found = counts(args.work)
    for role, streams in found.items():
        for name, count in streams.items():
            print(f"{role:7} {name:36} {count:12,} tokens")
    print(schedule.table(preset, schedule.costs(preset, found), args.tflops), flush=True)


def train(args: argparse.Namespace) -> None:
    """Every stage that is not done, two lanes beside each other."""
    from scripts.train_demo_trio.schedule import run_lanes

    stop_at = time.time() + 60 * args.call_minutes
    tokens(args)
    options = [
        *("--work", str(args.work), "--device", args.device, "--threads", str(args.threads)),
        *("--seed", str(args.seed), "--minutes", str(args.minutes), "--stop-at", str(stop_at)),
        *("--scale", str(args.scale)),
        *(("--decay", str(args.decay)) if args.decay is not None else ()),
        *(("--pack", str(args.pack)) if args.pack else ()),
        *(("--no-compile",) if args.no_compile else ()),
    ]
    left = run_lanes(args.stages, args.work, options, stop_at)
    print(f"not done yet, run again: {', '.join(left)}" if left else "all stages are done")


def stage(args: argparse.Namespace) -> None:
    """One stage, in this process."""
    import torch

    from scripts.train_demo_trio import schedule
    from scripts.train_demo_trio.tokens import counts, read_streams
    from scripts.train_demo_trio.train import Limits, Trainer, held_names
    from scripts.train_demo_trio.vocab import open_vocab

    torch.set_num_threads(args.threads)
    preset, wanted = _preset(args), STAGES[args.name]
    if args.decay is not None:
        wanted = replace(wanted, decay=args.decay)
    known = schedule.costs(preset, counts(args.work))
    minutes = schedule.minutes_of(tuple(STAGES), known, args.minutes)
    vocab = open_vocab(wanted.role, args.work)
    trainer = Trainer(
        wanted, preset, vocab, args.work, device=args.device, seed=args.seed,
        compiled=preset.compiled and not args.no_compile,
    )  # fmt: skip
    trainer.run(
        read_streams(args.work, wanted.role, tuple(wanted.epochs)),
        read_streams(args.work, wanted.role, held_names(wanted), held=True),
        Limits(known[args.name].tokens, minutes[args.name], args.stop_at),
    )


def deliver(args: argparse.Namespace) -> None:
    """Weights in parts of limited size, to be brought to another machine."""
    from scripts.train_demo_trio.deliver import deliver as write

    for path in write(args.work, args.out, args.stages, round(args.part_mib * 2**20)):
        print(path)


def receive(args: argparse.Namespace) -> None:
    """Delivered weights as checkpoints."""
    from scripts.train_demo_trio.deliver import receive as read
    from scripts.train_demo_trio.vocab import write_vocabs

    args.work.mkdir(parents=True, exist_ok=True)
    print("received:", ", ".join(read(args.parts, args.work)))
    write_vocabs(pack.read(args.pack or args.work / "pack").files, args.work)


def export(args: argparse.Namespace) -> None:
    """Checkpoints to a bundle of GGUF files."""
    from scripts.train_demo_trio.export import export_trio
    from scripts.train_demo_trio.manifest import write_bundle

    stages = {"target": args.target, "expert": args.expert, "base": args.base}
    export_trio(args.work, args.out, stages, args.type)
    write_bundle(args.out, _preset(args))


def quantize(args: argparse.Namespace) -> None:
    """A bundle of F16 files to one with fewer bits."""
    from scripts.train_demo_trio.manifest import write_bundle
    from scripts.train_demo_trio.quantize import quantize_trio

    for line in quantize_trio(args.f16, args.out, args.type, args.importance):
        print(line)
    write_bundle(args.out, _preset(args))


def importance(args: argparse.Namespace) -> None:
    """What each column of the matrices is multiplied with, for `quantize --importance`."""
    from scripts.train_demo_trio.importance import measure

    roles = {"target": args.target, "expert": args.expert, "base": args.base}
    measure(args.work, roles, args.out)


def evaluate(args: argparse.Namespace) -> None:
    """Tables of bits per byte and of the tasks."""
    from scripts.train_demo_trio.evaluate import evaluate as run

    run(args.bundles, args.eval, args.out, args.limit, args.threads)


def ask(args: argparse.Namespace) -> None:
    """The twenty prompts."""
    from scripts.train_demo_trio.ask import ask_all

    ask_all(args.bundle, args.threads, args.max_tokens)


def _shared(parser: argparse.ArgumentParser, *, training: bool = False) -> None:
    parser.add_argument("--work", type=Path, required=True, help="folder of what is in between")
    parser.add_argument("--pack", type=Path, help="folder of the pack (WORK/pack)")
    parser.add_argument("--seed", type=int, default=1)
    if training:
        told = "of training in each lane; the rates fall to zero until then"
        parser.add_argument("--minutes", type=float, default=math.inf, help=told)
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
        parser.add_argument("--threads", type=int, default=1, help="of each process")
        parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
        parser.add_argument("--scale", type=float, default=1.0, help="of all epochs")
        parser.add_argument("--decay", type=float, help="weight decay, instead of the stages'")


def _trio(parser: argparse.ArgumentParser) -> None:
    for role, name in (("target", "target-tune"), ("expert", "expert-tune"), ("base", "base")):
        parser.add_argument(f"--{role}", choices=STAGES, default=name, help="its stage")


def _training_verbs(add: Callable[[Verb], argparse.ArgumentParser]) -> None:
    verb = add(prepare)
    verb.add_argument("data", type=Path)
    verb.add_argument("--work", type=Path, required=True)
    verb.add_argument("--preset", choices=PRESETS, default="demo")
    for each in (tokens, train):
        verb = add(each)
        _shared(verb, training=each is train)
        verb.add_argument("--jobs", type=int, help="processes that tokenize (one for each core)")
        verb.add_argument("--tflops", type=float, default=396.0,
                          help="for the estimate; 40 %% of an H200's 990 in bfloat16")  # fmt: skip
        if each is train:
            verb.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
            verb.add_argument("--call-minutes", type=float, default=math.inf,
                              help="save and end after so long; the next call goes on")  # fmt: skip
    verb = add(stage)
    verb.add_argument("name", choices=STAGES)
    _shared(verb, training=True)
    verb.add_argument("--stop-at", type=float, default=math.inf, help="seconds since 1970")


def _file_verbs(add: Callable[[Verb], argparse.ArgumentParser]) -> None:
    verb = add(deliver)
    _shared(verb)
    verb.add_argument("out", type=Path)
    verb.add_argument("--stages", nargs="+", choices=STAGES, required=True)
    verb.add_argument("--part-mib", type=float, default=15.5, help="largest file")
    verb = add(receive)
    _shared(verb)
    verb.add_argument("parts", type=Path)
    verb = add(export)
    _shared(verb)
    _trio(verb)
    verb.add_argument("out", type=Path)
    verb.add_argument("--type", default="f16", choices=("f16", "q8_0"))
    verb = add(importance)
    _shared(verb)
    _trio(verb)
    verb.add_argument("out", type=Path)
    verb = add(quantize)
    _shared(verb)
    verb.add_argument("f16", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--type", default="q6_k")
    verb.add_argument("--importance", type=Path, help="folder that `importance` wrote")


def _judging_verbs(add: Callable[[Verb], argparse.ArgumentParser]) -> None:
    verb = add(evaluate)
    verb.add_argument("bundles", type=Path, nargs="+")
    verb.add_argument("--eval", type=Path, required=True, help="folder of the evaluation files")
    verb.add_argument("--out", type=Path, required=True, help="folder for the tables")
    verb.add_argument("--limit", type=int, help="items of each file")
    verb.add_argument("--threads", type=int, default=2)
    verb = add(ask)
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--threads", type=int, default=2)
    verb.add_argument("--max-tokens", type=int, default=200)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m scripts.train_demo_trio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(required=True, metavar="VERB")

    def add(verb: Verb) -> argparse.ArgumentParser:
        told = (verb.__doc__ or "").strip()
        added = verbs.add_parser(verb.__name__, help=told, description=told)
        added.set_defaults(verb=verb)
        return added

    _training_verbs(add)
    _file_verbs(add)
    _judging_verbs(add)
    return made


def main(argv: list[str] | None = None) -> None:
    """Run one verb."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    args.verb(args)


if __name__ == "__main__":
    main()
