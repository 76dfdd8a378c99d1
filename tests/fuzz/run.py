"""Fuzzes a reader for a bounded time, by changes of the files of the corpus from a seed.

    python -m tests.fuzz.run header --seconds 600

An input that is neither known nor refused is kept (`--keep FOLDER`) and the exit code is not 0; put
it into the corpus with its mending. Needs a system with a folder for temporary files.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Literal, get_args

import typer

HERE = Path(__file__).resolve().parent
Name = Literal["header", "archive", "manifest", "lines", "table", "value"]
NAMES = get_args(Name)
_TOKENS = {
    "header": (b"GGUF", b"general.architecture", b"llama", b"general.alignment", b"split.count",
               b"tokenizer.ggml.tokens", b"\x08\0\0\0", b"\x09\0\0\0", b"\xff" * 8, b"\0" * 8),
    "archive": (b"ustar", b"bundle.toml", b"target.gguf", b"\0" * 512, b"00000000000"),
    "manifest": (b"[models.target]\n", b"file = ", b"sha256 = ", b"schema = 1\n", b"[[", b'"""'),
}  # fmt: skip
_TEXT = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b"\\ud800", b"\\u0000", b"NaN",
         b"1e999", b'"id"', b'"prompt"', b'"messages"', b'"custom_id"', b"\xef\xbb\xbf", b"\xff",
         b"\xe2\x80\xa8", b"null", b"-", b"9" * 30)  # fmt: skip
_EDGES = (0, 1, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)


def main(target: Name, seconds: float = 60, seed: int = 20261122, keep: Path | None = None) -> None:
    """Fuzzes a reader for a bounded time; inputs that are faults go to the folder of --keep."""
    # The user's store is one of this run: the readers of bundles write to it.
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name
        for each in ("DATA", "STATE", "CONFIG"):
            os.environ[f"XDG_{each}_HOME"] = str(Path(name) / f"capt-local-fuzz-{os.getpid()}")
        by_mutations(target, seconds, seed, keep)


def by_mutations(target: str, seconds: float, seed: int, keep: Path | None) -> None:
    """Fuzzes by changes from a seed, each of a file of the corpus or of an input that was taken."""
    from tests.fuzz.targets import TARGETS

    draw, run = random.Random(seed), TARGETS[target]
    corpus = [each.read_bytes() for each in sorted((HERE / "corpus" / target).iterdir())]
    tokens = _TOKENS.get(target, _TEXT)
    until, tried, taken = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        data = mutant(draw, corpus, tokens)
        try:
            good = run(data)
        except Exception:
            if keep is not None:
                (keep / f"fault-{target}-{tried}").write_bytes(data)
            raise
        tried, taken = tried + 1, taken + good
        if good and len(corpus) < 1000:
            corpus.append(data)
    print(f"{target}: by mutations from seed {seed}, {tried:,} inputs, {taken:,} taken", flush=True)


def mutant(draw: random.Random, corpus: list[bytes], tokens: tuple[bytes, ...]) -> bytes:
    """A file of the corpus with one to five changes."""
    data = bytearray(draw.choice(corpus))
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 2, 4, 8, 64)))
        other = draw.choice(corpus)
        start = draw.randrange(len(other) + 1)
        new = draw.choice((
            b"",  # taken out
            bytes([draw.randrange(256)]),
            draw.choice(tokens),
            bytes(data[at:end]) * 2,
            other[start : start + draw.choice((4, 16, 200))],
            draw.choice(_EDGES).to_bytes(8, "little")[: draw.choice((4, 8))],
        ))  # fmt: skip
        data[at : draw.choice((at, end))] = new
    return bytes(data)


if __name__ == "__main__":
    typer.run(main)
