"""What the other process does that looks into model files first; see `examine`.

It reads a line of JSON for each model and answers it with a line: `passed`, or why not. What
libraries print goes nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from capt_local.engine.confined import allow_memory, confine
from capt_local.engine.header import read_header
from capt_local.engine.library import library
from capt_local.engine.llama import LlamaModel
from capt_local.engine.memory import estimate
from capt_local.engine.options import Adapter, LoadOptions
from capt_local.engine.private import be_first_to_go
from capt_local.engine.weights import Weights
from capt_local.errors import CaptError, MemoryShortage
from capt_local.strict.json import parse_object

PASSED, REFUSED, SHORT = "passed", "refused: ", "memory: "
_ROOM = 1 << 30  # bytes, for the program itself and for what it makes of a vocabulary
_CONTEXT = 64
_SAMPLE = b"Pt. denies chest pain; BP 120/80 mmHg.\n"
_MOST_TOKENS = 4  # of the sample that are computed


def main() -> None:
    """Serves until the other process closes the line."""
    incoming, outgoing = _streams()
    be_first_to_go()
    library()  # opens what it has to, before that is forbidden
    confine()
    for line in incoming:
        said = _answer(parse_object(line))
        outgoing.write(said.encode("utf-8", "replace") + b"\n")
        outgoing.flush()


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes, out of the way of whatever prints."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return incoming, outgoing


def _answer(asked: dict[str, Any]) -> str:
    try:
        look(Path(asked["model"]), [Path(each) for each in asked["adapters"]])
    except MemoryShortage as error:
        return SHORT + " ".join(str(error).split())
    except CaptError as error:
        return REFUSED + " ".join(str(error).split())
    except MemoryError:
        name = Path(asked["model"]).name
        return f"{SHORT}{name} takes more memory than its header explains."
    return PASSED


def look(model: Path, adapters: Sequence[Path]) -> None:
    """Loads a model and looks at every weight; splits a text and computes some tokens of it.

    Args:
        model: its file.
        adapters: likewise; each is put on the model by itself.

    Raises:
        ModelError: a file is damaged.
        MemoryShortage: there is no room for it.
        NumericalError: what it computes are no numbers.
    """
    plain = LoadOptions(
        gpu_layers=0, context=_CONTEXT, batch=16, max_rows=1, check_tensors=True, threads=1
    )
    each = [plain, *(replace(plain, adapters=(Adapter(path),)) for path in adapters)]
    header = read_header(model)
    needed = max(estimate(header, one).total for one in each)
    allow_memory(needed + _ROOM)
    with Weights(model, plain) as weights:
        tokens = weights.tokenize(_SAMPLE, special=False)[:_MOST_TOKENS] or [0]
        for options in each:
            with LlamaModel(weights, options, name="The model") as opened:
                opened.extend(tokens)
