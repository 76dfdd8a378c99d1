"""Counts answers of the fast modes that are those of exact-steps, bit for bit.

python scripts/measure_same_answers.py TARGET EXPERT BASE ITEMS.jsonl [...] --count 300

ITEMS hold "instruction" and "input" (see docs/eval.md). Compared are the tokens, their
log-probabilities under the combination, and those under the target.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from capt_local import GenerateOptions, LoadOptions, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.decoding.options import Speed
from capt_local.decoding.step import Step


def bits(steps: list[Step]) -> list[tuple[int, float, float]]:
    """What is compared of an answer."""
    return [(step.token, step.logp, step.target_logp) for step in steps]


def main() -> None:
    """Answers each item at every speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs=3)
    parser.add_argument("items", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    target, expert, base = given.models
    lines = itertools.chain.from_iterable(path.open(encoding="utf-8") for path in given.items)
    asked = [json.loads(line) for line in itertools.islice(lines, given.count)]
    load = LoadOptions(threads=given.threads, context=4096)
    same = drafted = skipped = 0
    files = Bundle.from_paths(target, expert, base)
    with Runtime.open(files, load=load, check=False) as runtime:
        for item in asked:
            prompt = f"{item['instruction']}\n\n{item['input']}"
            found = {}
            for speed in Speed:
                runtime.forget()
                answer = runtime.generate(
                    prompt, GenerateOptions(max_tokens=given.tokens, speed=speed)
                )
                found[speed] = bits(list(answer))
                drafted += answer.stats.drafted
                skipped += answer.stats.proxies_skipped
            same += found[Speed.AUTO] == found[Speed.EXACT_STEPS]
    print(f"{same} of {len(asked)} the same bits, {drafted} tokens drafted")
    print(f"proxies skipped at {skipped} steps")


if __name__ == "__main__":
    main()
