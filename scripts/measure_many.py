"""Measures requests side by side: how many a second, and whether their answers are the same.

    python -m scripts.measure_many PROMPTS [--bundle demo | --folder FOLDER] [--limit 100]

PROMPTS is a task of `capt-local eval` or JSON Lines with a `prompt` each. FOLDER holds target.gguf,
expert.gguf and base.gguf. The same requests are answered one at a time and side by side, in turn,
then side by side in another order and fewer at once. Answers are greedy and step by step.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

from capt_local import Answered, Ask, GenerateOptions, LoadOptions, Runtime
from capt_local.bundle.manifest import Bundle
from capt_local.decoding.options import Speed
from capt_local.decoding.step import Step
from capt_local.evaluate.speed.questions import read_questions

ROUND = 16  # requests of one kind before the other has its turn, so that drift cancels


def main() -> None:
    """Prints the figures."""
    given = arguments()
    options = GenerateOptions(max_tokens=given.max_tokens, speed=Speed(given.speed))
    questions = read_questions(
        given.prompts, "The file", limit=given.limit, size=given.size, raw=given.raw
    )
    asks = [Ask(each.asked, options, raw=each.raw) for each in questions]
    bundle: str | Bundle = given.bundle
    if given.folder:
        bundle = Bundle.from_paths(*(given.folder / f"{role}.gguf" for role in ROLES))
    load = LoadOptions(threads=given.threads, context=given.context)
    with Runtime.open(bundle, load=load) as runtime:
        side_by_side(runtime, asks[:2], given.parallel)  # lanes and tables are made
        alone: list[Answered] = []
        together: list[Answered] = []
        spent = {"one at a time": 0.0, "side by side": 0.0}
        for start in range(0, len(asks), ROUND):
            some = asks[start : start + ROUND]
            began = time.perf_counter()
            alone += runtime.generate_many(some, alone=True)
            between = time.perf_counter()
            together += side_by_side(runtime, some, given.parallel)
            spent["one at a time"] += between - began
            spent["side by side"] += time.perf_counter() - between
        for name, seconds in spent.items():
            print(f"{name}: {len(asks) / seconds:.2f} requests/s")
        print(f"ratio at {given.parallel}: {spent['one at a time'] / spent['side by side']:.2f}")
        tell_differences(alone, together)
        order = list(range(len(asks)))
        random.Random(1).shuffle(order)
        again = side_by_side(runtime, [asks[place] for place in order], given.parallel)
        again = [again[order.index(place)] for place in range(len(asks))]
        print(f"in another order: {same_bits(together, again)} of {len(asks)} the same bit for bit")
        again = side_by_side(runtime, asks, given.fewer)
        print(f"{given.fewer} at once: {same_bits(together, again)} the same bit for bit")


ROLES = ("target", "expert", "base")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--size", type=int, default=400, help="bytes of each input")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--fewer", type=int, default=3)
    parser.add_argument("--raw", action="store_true", help="without chat templates")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--speed", default=Speed.EXACT_STEPS.value, help="of both")
    return parser.parse_args()


def side_by_side(runtime: Runtime, asks: Sequence[Ask], parallel: int) -> list[Answered]:
    """The answers, in the order of the requests."""
    return sorted(runtime.generate_many(asks, parallel=parallel), key=lambda each: each.index)


def same_bits(first: Sequence[Answered], second: Sequence[Answered]) -> int:
    """How many answers agree in every number of every step."""
    return sum(one.steps == two.steps for one, two in zip(first, second, strict=True))


def tell_differences(alone: Sequence[Answered], together: Sequence[Answered]) -> None:
    """Where greedy answers part, and how near the two choices were. Numbers alone, no text."""
    pairs = list(zip(alone, together, strict=True))
    tokens = sum(len(one.steps) for one in alone)
    largest, parted = 0.0, 0
    for number, (one, two) in enumerate(pairs):
        place = first_difference(one.steps, two.steps)
        shared = zip(one.steps[:place], two.steps[:place], strict=True)
        largest = max([largest, *(abs(a.logp - b.logp) for a, b in shared)])
        if place < max(len(one.steps), len(two.steps)):
            parted += 1
            a, b = one.steps[place], two.steps[place]
            print(
                f"request {number}, step {place}: token {a.token} at {a.logp:.6f} alone, "
                f"{b.token} at {b.logp:.6f} beside others"
            )
    print(
        f"answers that are the same: {len(pairs) - parted} of {len(pairs)}; first different tokens "
        f"{parted} of {tokens}; largest difference of a log-probability before {largest:.2g}"
    )


def first_difference(first: Sequence[Step], second: Sequence[Step]) -> int:
    """The first step at which another token was chosen."""
    pairs = zip(first, second, strict=False)
    same = (place for place, (one, two) in enumerate(pairs) if one.token != two.token)
    return next(same, min(len(first), len(second)))


if __name__ == "__main__":
    main()
