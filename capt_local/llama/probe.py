"""Test-loads files that no trusted manifest names in an isolated process.

llama.cpp parses files in C++; a hostile or damaged file can then crash that process only, not this
one. It checks every weight for NaN and infinities, tokenizes a text and decodes some of its tokens.
On Linux that process may use only the system calls that it needs (see `hardening`), and the memory
that the header explains; elsewhere only the limits of the system apply. Its time limit is that of a
slow disk. Each model has its own process, with its adapters, so that no file can affect the check
of another one.

`probe_files` runs in this process, `serve` in the isolated one, which gets a request in JSON on its
standard input and answers with one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from capt_local.errors import CaptError, MemoryShortage, ModelError, UsageError
from capt_local.hardening import (
    confine,
    detach_standard_streams,
    limit_memory,
    prefer_oom_kill,
    run_isolated,
)
from capt_local.llama.gguf_header import check_adapter, read_header
from capt_local.llama.library import library
from capt_local.llama.model import Encoder, LlamaModel
from capt_local.llama.options import Adapter, LoadOptions
from capt_local.llama.resources import estimate
from capt_local.llama.weights import LockedFile, Weights, check_values
from capt_local.strict_json import Stamp, parse_object

Waiting = Callable[[], None]

UNCONFINED, PASSED, REFUSED, SHORT = "unconfined", "passed", "refused: ", "memory: "

_SECONDS = 60.0  # time limit for an empty file
_SLOWEST = 10 << 20  # bytes per second of the slowest disk
_LONGEST = 1000  # characters of an answer
_PROGRAM_BYTES = 1 << 30  # memory of the program itself and of a vocabulary
_CONTEXT = 64
_SAMPLE = b"Pt. denies chest pain; BP 120/80 mmHg.\n"
_MOST_TOKENS = 4  # tokens of the sample to decode
# A single thread, so that the system call filter can forbid to start others.
_OPTIONS = LoadOptions(gpu_layers=0, context=_CONTEXT, batch=16, max_rows=1, threads=1)

_PROGRAM = "from capt_local.llama.probe import serve; serve()"
_TRIAL = "import sys; from capt_local.hardening import confine; sys.exit(not confine())"


def seccomp_is_enforced() -> bool:
    """Whether the kernel enforces the probe's system call filter; tested in a new process."""
    with contextlib.suppress(OSError):
        return run_isolated(_TRIAL, b"", seconds=_SECONDS, largest=_LONGEST)[1] == 0
    return False


def probe_files(
    path: Path,
    adapters: Sequence[Path] = (),
    waiting: Waiting | None = None,
    stamps: Mapping[Path, Stamp] | None = None,
    encoder: bool = False,
) -> dict[Path, str]:
    """Test-loads a model, alone and with each of its adapters, in an isolated process.

    Args:
        path: of the model, or with `encoder` of the encoder of a scorer.
        adapters: of LoRA adapters.
        waiting: called several times a second while it works; may raise to stop.
        stamps: of files that were checked already, by path.
        encoder: see `path`.

    Returns:
        SHA-256 of the content that was loaded, of the files that other accounts may write.

    Raises:
        ModelError: a file is damaged, or the process did not end as it should.
        MemoryShortage: the model does not fit into memory.
        UsageError: this Linux does not let a process give up system calls.
    """
    header = read_header(path, encoder=encoder)  # raises for a broken header, before llama.cpp
    with ExitStack() as stack:
        locked = {
            one: stack.enter_context(LockedFile(one, (stamps or {}).get(one)))
            for one in (path, *adapters)
        }
        needed = 2 * header.file_size
        if not encoder:
            header = read_header(path, locked[path].place)
            for adapter in adapters:
                check_adapter(adapter, header, path.name, locked[adapter].place)
            needed = max(estimate(header, options).total for options in _each(adapters))
        copies = [one for one in locked.values() if one.sha256 is not None]
        names = stack.enter_context(_named(locked)) if copies else {}
        files = [os.fsencode(names.get(one, one.absolute())) for one in (path, *adapters)]
        request = {
            # Hexadecimal, since file names need not be UTF-8 and JSON has to be.
            "files": [name.hex() for name in files],
            "encoder": encoder,
            "memory": needed + _PROGRAM_BYTES,
        }
        limit = _SECONDS + header.file_size / _SLOWEST
        answer = _answered(request, [one.handle for one in copies], limit, waiting, path.name)
        if answer == UNCONFINED:
            raise UsageError(
                "This system does not let a process give up system calls (seccomp), so files that "
                "no trusted manifest names are not opened. Use a bundle that a trusted key signed, "
                "or --verify never to load them without that protection."
            )
        if answer != PASSED:  # a hostile file may have made the process say anything
            shown = "".join(char for char in answer[:_LONGEST] if char.isprintable())
            for mark, kind in ((REFUSED, ModelError), (SHORT, MemoryShortage)):
                if shown.startswith(mark):
                    raise kind(shown.removeprefix(mark))
            raise ModelError(
                f"{path.name} cannot be used: the process that looked at it says nothing clear."
            )
        for one in locked.values():
            one.check()
        return {one.path: one.sha256 for one in copies if one.sha256 is not None}


def _each(adapters: Sequence[Path]) -> list[LoadOptions]:
    """Load options for the model alone, and with each of the adapters."""
    return [_OPTIONS, *(replace(_OPTIONS, adapters=(Adapter(one),)) for one in adapters)]


@contextlib.contextmanager
def _named(locked: Mapping[Path, LockedFile]) -> Iterator[dict[Path, Path]]:
    """Links with the files' own names to the locked files, for a process that inherits them."""
    with tempfile.TemporaryDirectory(prefix="capt-local-") as folder:
        names, folders = {}, list(dict.fromkeys(path.parent for path in locked))
        for path, file in locked.items():
            beside = Path(folder) / str(folders.index(path.parent))  # two may have one name
            beside.mkdir(exist_ok=True)
            names[path] = beside / path.name
            names[path].symlink_to(file.place if file.sha256 is not None else path.absolute())
        yield names


def _answered(
    request: Mapping[str, object],
    handles: Sequence[int],
    seconds: float,
    waiting: Waiting | None,
    name: str,
) -> str:
    """Sends a request to a new process and returns its answer."""
    line = json.dumps(request).encode() + b"\n"
    try:
        answer, code = run_isolated(
            _PROGRAM, line, seconds=seconds, largest=4 * _LONGEST, handles=handles, waiting=waiting
        )
    except TimeoutError:
        raise ModelError(
            f"{name} kept the process that looked at it busy for more than {seconds:.0f} s, so it "
            "is not used. Get the file again from its source."
        ) from None
    except OSError as error:
        raise ModelError(
            f"The process that looks at model files cannot be started: {error.strerror}."
        ) from None
    if not answer.endswith(b"\n") or len(answer) > 4 * _LONGEST:
        raise ModelError(
            f"{name} ended the process that looked at it (code {code}), so it is not used. Get "
            "the file again from its source."
        )
    return answer.decode("utf-8", "replace").strip()


# --- in the other process -----------------------------------------------------------------------


def serve() -> None:
    """Answers one request in the isolated process; output of libraries is discarded."""
    incoming, outgoing = detach_standard_streams()
    request: dict[str, Any] = parse_object(incoming.readline())
    prefer_oom_kill()
    library()  # loads shared libraries before the filter forbids it
    import gguf.constants  # noqa: F401  (likewise)

    limit_memory(request["memory"])
    if confine() or sys.platform != "linux":
        files = [Path(os.fsdecode(bytes.fromhex(one))) for one in request["files"]]
        answer = _answer(files, encoder=request["encoder"])
    else:
        answer = UNCONFINED
    outgoing.write(answer.encode("utf-8", "replace") + b"\n")
    outgoing.flush()


def _answer(files: Sequence[Path], *, encoder: bool) -> str:
    try:
        load(files[0], files[1:], encoder=encoder)
    except MemoryShortage as error:
        return SHORT + " ".join(str(error).split())
    except CaptError as error:
        return REFUSED + " ".join(str(error).split())
    except MemoryError:
        return f"{SHORT}{files[0].name} takes more memory than its header explains."
    return PASSED


def load(model: Path, adapters: Sequence[Path], *, encoder: bool = False) -> None:
    """Loads a model, checks every weight, tokenizes a text and decodes some of its tokens.

    Raises:
        ModelError: a file is damaged.
        MemoryShortage: there is not enough memory for it.
        NumericalError: its logits are not finite.
    """
    if encoder:
        with Encoder(model) as opened_encoder:
            opened_encoder.vector(opened_encoder.tokenize(_SAMPLE.decode())[:_MOST_TOKENS])
        return
    for path in adapters:
        with LockedFile(path) as file:
            check_values(library(), file, read_header(path, file.place))
    with Weights(model, replace(_OPTIONS, check_tensors=True)) as weights:
        tokens = weights.tokenize(_SAMPLE, special=False)[:_MOST_TOKENS] or [0]
        for options in _each(adapters):
            with LlamaModel(weights, options, name="The model") as opened:
                opened.extend(tokens)
