"""A first look at files that came from elsewhere, in a process of its own.

llama.cpp reads a file with code in C++; what a hostile or damaged one does there ends that process
and not this one. Every weight is looked at for NaN and infinities.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from capt_local.engine.header import read_header
from capt_local.errors import CaptError, MemoryShortage, ModelError

# What the other process says begins with one of these; all else is none of its own words.
_REFUSED, _SHORT = "refused: ", "memory: "


def examine(path: Path, adapters: Sequence[Path] = ()) -> None:
    """Loads a model, and adapters onto it, in another process that ends behind that.

    Raises:
        ModelError: a file is damaged, or the process did not end as it should.
        MemoryShortage: the model does not fit into memory.
    """
    read_header(path)  # in Python: what is plainly broken never reaches llama.cpp
    files = [str(one.resolve()) for one in (path, *adapters)]
    # -I: neither the folder that this is run in nor the environment says what is imported.
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM, str(_package()), *files],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", "")},
    )
    if not done.returncode:
        return
    said = done.stderr.decode("utf-8", "replace").splitlines()
    last = said[-1] if said else ""
    for mark, kind in ((_REFUSED, ModelError), (_SHORT, MemoryShortage)):
        if last.startswith(mark):
            raise kind(last.removeprefix(mark))
    raise ModelError(
        f"{path.name} ended the process that looked at it (code {done.returncode}), so it is "
        "not used. Get the file again from its source."
    )


def main(files: Sequence[str]) -> str | None:
    """What the other process does.

    Args:
        files: a model, then adapters.

    Returns:
        What is wrong, for `sys.exit`; None where nothing is.
    """
    from capt_local.engine.options import LoadOptions
    from capt_local.engine.weights import Weights

    model, *adapters = map(Path, files)
    try:
        with Weights(model, LoadOptions(gpu_layers=0, check_tensors=True)) as weights:
            for adapter in adapters:
                weights.adapter(adapter)
    except CaptError as error:
        mark = _SHORT if isinstance(error, MemoryShortage) else _REFUSED
        return mark + str(error).replace("\n", " ")
    return None


_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from capt_local.engine.examine import main; sys.exit(main(sys.argv[2:]))"
)


def _package() -> Path:
    """The folder that this package is imported from."""
    return Path(__file__).resolve().parents[2]
