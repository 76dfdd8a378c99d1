"""Sends generated texts through every call that reads one: FOLDER NAME COUNT SEED [FIRST].

A process of its own, since native code may end it. Prints how many calls were answered and refused.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from capt_local import CaptError, GenerateOptions, LoadOptions, Request, Runtime
from capt_local.bundles.manifest import Bundle
from tests.children.long_texts import CLASSES
from tests.tiny_models import tiny_gguf

OPTIONS = GenerateOptions(max_tokens=2)
_BLOCKS = (
    (0x00, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0x10FF), (0x1F00, 0x2FFF), (0x3000, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xFFFF),
    (0x10000, 0x10FFFF),
)  # fmt: skip


def text_of(seed: int) -> str:
    """A text of 0 to about 400 characters: runs of one class, random blocks of Unicode, words."""
    rng = random.Random(seed)
    parts = []
    for _ in range(rng.randrange(6)):
        size = int(80 ** rng.random())
        kind = rng.randrange(3)
        if kind == 0:
            parts.append(rng.choice(list(CLASSES.values())) * size)
        elif kind == 1:
            block = rng.choice(_BLOCKS)
            parts.append("".join(chr(rng.randint(*block)) for _ in range(size)))
        else:
            units = rng.choices(list(CLASSES.values()), k=size)
            parts.append("".join(units))
    return "".join(parts)


def answered(runtime: Runtime, text: str) -> Iterable[tuple[str, Callable[[], object]]]:
    """The calls that read a text, as the verbs make them."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text},
             {"role": "user", "content": "Why?"}]  # fmt: skip
    requests = [Request(text, OPTIONS), Request("Why?", OPTIONS), Request(text, OPTIONS, raw=True)]
    yield "generate", lambda: list(runtime.generate(text, OPTIONS))
    yield "chat", lambda: list(runtime.generate(turns, OPTIONS))
    yield "score", lambda: runtime.score(text.encode("utf-8", "surrogatepass"), OPTIONS)
    yield "batch", lambda: list(runtime.generate_many(requests, parallel=3))


def main(folder: str, name: str, count: str, first: str = "0") -> None:
    room = Path(folder)
    bundle = Bundle.from_paths(
        tiny_gguf(room / "target.gguf", seed=0, context=4096, pre_tokenizer=name),
        tiny_gguf(room / "expert.gguf", seed=1, context=4096),
        tiny_gguf(room / "base.gguf", seed=2, context=4096),
    )
    found: Counter[str] = Counter()
    with Runtime.open(bundle, load=LoadOptions(threads=1, context=2048), check=False) as runtime:
        for seed in range(int(first), int(first) + int(count)):
            print(seed, end=" ", file=sys.stderr, flush=True)  # the culprit, if the process ends
            for verb, call in answered(runtime, text_of(seed)):
                try:
                    call()
                    found[f"{verb} answered"] += 1
                except CaptError as error:
                    found[f"{verb} refused: {type(error).__name__}"] += 1
    print(name, dict(sorted(found.items())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
