"""Tokenizes generated texts: PATH SIZE SECONDS CLASS...; a line each, killed by an alarm if stuck.

A process of its own, since native code that recurses too deep ends it.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from capt_local.errors import TextTooLong
from capt_local.llama.weights import Weights
from capt_local.tokenization import TextTokenizer

CLASSES = {
    "underscores": "_",
    "dashes": "-",
    "full stops": ".",
    "spaces": " ",
    "line ends": "\n",
    "CRLF": "\r\n",
    "tabs": "\t",
    "no-break spaces": "\u00a0",
    "zero width": "\u200b",
    "lower case": "a",
    "upper case": "A",
    "camel case": "aA",
    "accents": "\u00e9",
    "digits": "7",
    "Chinese": "\u65e5",
    "Japanese": "\u3042",
    "Korean": "\uac00",
    "Arabic": "\u0628",
    "Hindi": "\u0915\u094d",
    "Thai": "\u0e01",
    "combining marks": "\u0301",
    "emoji": "\U0001f600",
    "apostrophes": "'",
    "slashes": "/",
    "dollars": "$",
    "control characters": "\x02",
    "single letters": "a b ",
    "words": "Pt. c/o chest pain x3 days; BP 142/88.\n",
}


def main(path: str, size: str, seconds: str, *classes: str) -> None:
    weights = Weights(Path(path), vocabulary_only=True)
    tokenizer = TextTokenizer(weights.vocabulary, weights.tokenize)
    for name in classes or CLASSES:
        unit = CLASSES[name].encode()
        text = unit * (int(size) // len(CLASSES[name]))
        signal.alarm(int(seconds))
        started = time.perf_counter()
        try:
            tokens = tokenizer.encode(text, start=True)
            found = b"".join(map(weights.vocabulary.piece, tokens))
            assert found == tokenizer.leading_space + text, name
        except TextTooLong:
            tokens = []
        print(f"{name}: {len(tokens)} tokens, {time.perf_counter() - started:.2f} s", flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
