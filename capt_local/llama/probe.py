"""Loads files that no trusted manifest names in a process of their own first.

llama.cpp reads a file with code in C++; what a hostile or damaged file does there ends that process
and not this one. There, every weight is checked for NaN and infinities, a text is split into tokens
and some of them are computed. On Linux that process may use only the system calls that this needs
(see `hardening`), and its memory is limited from here to what the header explains; elsewhere
only the limits of the system hold it. It has as much time as a slow disk needs.

Two kinds of names below: what this process runs (`Probe`), and what the other one does (`serve`).
They talk in lines: a request in JSON for each model, and an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from capt_local.errors import CaptError, MemoryShortage, ModelError, UsageError
from capt_local.hardening import (
    bare_environment,
    be_first_to_go,
    confine,
    data_bytes,
    own_streams,
    python_command,
)
from capt_local.llama.adapters import check_adapter
from capt_local.llama.encoder import Encoder
from capt_local.llama.gguf_header import model_parts, read_header, read_model_header
from capt_local.llama.library import Closing, library
from capt_local.llama.locked_file import LockedFile
from capt_local.llama.memory import estimate
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Adapter, LoadOptions
from capt_local.llama.weights import Weights, check_values
from capt_local.strict_json import Stamp, parse_object

Waiting = Callable[[], None]

READY, UNCONFINED = "ready: ", "unconfined"
PASSED, REFUSED, SHORT = "passed", "refused: ", "memory: "

_SECONDS = 60.0  # for a file of no size
_SLOWEST = 10 << 20  # bytes in a second
_PATIENCE = 5.0  # seconds for a process to end that has closed its line
_EACH = 0.1  # seconds between two calls of `waiting`
_LONGEST = 1000  # characters of an answer
_PROGRAM_BYTES = 1 << 30  # for the program itself and for what it makes of a vocabulary
_CONTEXT = 64
_SAMPLE = b"Pt. denies chest pain; BP 120/80 mmHg.\n"
_MOST_TOKENS = 4  # of the sample that are computed
# One thread, so that the filter of system calls can forbid to start any.
_OPTIONS = LoadOptions(gpu_layers=0, context=_CONTEXT, batch=16, max_rows=1, threads=1)

_PROGRAM = "from capt_local.llama.probe import serve; serve()"
_TRIAL = "import sys; from capt_local.hardening import confine; sys.exit(not confine())"


def calls_are_forbidden() -> bool:
    """Whether the kernel enforces the probe's list of system calls; tries it in a process."""
    try:
        done = subprocess.run(
            python_command(_TRIAL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
            timeout=_SECONDS,
        )
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Probe(Closing):
    """The other process; it is started for the first file, and again when one has ended it.

    Attributes:
        ended: how many files have ended the process.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._process: _Process | None = None
        self.ended = 0

    def look(
        self,
        path: Path,
        adapters: Sequence[Path] = (),
        waiting: Waiting | None = None,
        stamps: Mapping[Path, Stamp] | None = None,
        *,
        encoder: bool = False,
    ) -> dict[Path, str]:
        """Loads a model, and adapters onto it.

        Args:
            path: of the model; of the first part if it is split.
            adapters: of LoRA adapters; each is put on the model by itself.
            waiting: called several times a second while it works; may raise to stop.
            stamps: of files that were checked already, by path.
            encoder: whether it is one, of a scorer.

        Returns:
            SHA-256 of the content that was loaded, of the files that other accounts may write.

        Raises:
            ModelError: a file is damaged, or the process did not end as it should.
            MemoryShortage: the model does not fit into memory.
            UsageError: this Linux does not let a process give up system calls.
        """
        with ExitStack() as stack:
            # A broken one never reaches llama.cpp.
            parts = model_parts(path, first := read_header(path, encoder=encoder))
            known = stamps or {}
            locked = {
                one: stack.enter_context(LockedFile(one, known.get(one)))
                for one in (*parts, *adapters)
            }
            header, needed = first, 2 * first.file_size
            if not encoder:
                header = read_model_header(path, [locked[part].place for part in parts])
                for adapter in adapters:
                    check_adapter(adapter, header, path.name, locked[adapter].place)
                each = [_OPTIONS, *(replace(_OPTIONS, adapters=(Adapter(a),)) for a in adapters)]
                needed = max(estimate(header, options).total for options in each)
            limit = _SECONDS + header.file_size / _SLOWEST
            copies = [one for one in locked.values() if one.sha256 is not None]
            names = stack.enter_context(_named(locked)) if copies else {}
            process = self._started([one.handle for one in copies], waiting)
            request = {
                # In hexadecimal: the name of a file need not be UTF-8, and JSON has to be.
                "model": os.fsencode(names.get(path, path.absolute())).hex(),
                "adapters": [os.fsencode(names.get(one, one.absolute())).hex() for one in adapters],
                "encoder": encoder,
            }
            try:
                process.limit_memory(needed + _PROGRAM_BYTES)
                answer = process.ask(json.dumps(request), limit, waiting)
            except _Ended as end:
                self.close()
                self.ended += 1
                raise ModelError(
                    f"{path.name} {end}, so it is not used. Get the file again from its source."
                ) from None
            except BaseException:
                self.close()
                raise
            finally:
                if copies:  # the next file needs other handles
                    self.close()
            if answer != PASSED:
                raise _refusal(answer, path.name)
            for one in locked.values():
                one.check()
            return {one.path: one.sha256 for one in copies if one.sha256 is not None}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _started(self, handles: Sequence[int], waiting: Waiting | None) -> _Process:
        if self._process is None or handles:
            self.close()
            self._process = _Process(handles)
            try:
                self._process.wait_until_ready(waiting)
            except BaseException:
                self.close()
                raise
        return self._process


@contextlib.contextmanager
def _named(locked: Mapping[Path, LockedFile]) -> Iterator[dict[Path, Path]]:
    """Links with the files' own names to what is locked, as an inheriting process may open them."""
    with tempfile.TemporaryDirectory(prefix="capt-local-") as folder:
        names, folders = {}, list(dict.fromkeys(path.parent for path in locked))
        for path, file in locked.items():
            beside = Path(folder) / str(folders.index(path.parent))  # two may have one name
            beside.mkdir(exist_ok=True)
            names[path] = beside / path.name
            names[path].symlink_to(file.place if file.sha256 is not None else path.absolute())
        yield names


def _refusal(answer: str, name: str) -> ModelError | MemoryShortage:
    """What the process answered; a hostile file may have made it say anything."""
    shown = "".join(char for char in answer[:_LONGEST] if char.isprintable())
    for mark, kind in ((REFUSED, ModelError), (SHORT, MemoryShortage)):
        if shown.startswith(mark):
            return kind(shown.removeprefix(mark))
    return ModelError(f"{name} cannot be used: the process that looked at it says nothing clear.")


class _Ended(Exception):
    """The process is no more; the text, behind the name of a file, says how that came."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(text)
        self.why = why


class _Process:
    """One process, and a thread that listens to it."""

    def __init__(self, handles: Sequence[int] = ()) -> None:
        try:
            self._process = subprocess.Popen(
                python_command(_PROGRAM),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=bare_environment(),
                pass_fds=tuple(handles),
                start_new_session=True,  # without the user's terminal, which it could type into
            )
        except OSError as error:
            reason = error.strerror or "unknown"
            raise ModelError(
                f"The process that looks at model files cannot be started: {reason}."
            ) from None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._own_data = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_until_ready(self, waiting: Waiting | None) -> None:
        """Waits for the first line, after which nothing but the listed calls is possible.

        Raises:
            ModelError: it ended.
            UsageError: it could not be confined.
        """
        try:
            answer = self._next(_SECONDS, waiting)
        except _Ended as end:
            raise ModelError(
                f"The process that looks at model files cannot be used: {end.why}."
            ) from None
        if answer == UNCONFINED:
            raise UsageError(
                "This system does not let a process give up system calls (seccomp), so files that "
                "no trusted manifest names are not opened. Use a bundle that a trusted key signed, "
                "or --verify never to load them without that protection."
            )
        with contextlib.suppress(ValueError):
            self._own_data = int(answer.removeprefix(READY))

    def limit_memory(self, more: int) -> None:
        """Sets what the process may take beyond what it had at its start; Linux only.

        Args:
            more: bytes.
        """
        if sys.platform == "linux":
            import resource

            limit = self._own_data + more
            with contextlib.suppress(OSError):  # it has ended, which `ask` finds
                _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (limit, hard))

    def ask(self, line: str, limit: float, waiting: Waiting | None) -> str:
        """What it answers.

        Raises:
            _Ended: nothing, within so many seconds, or it ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._end() from None
        return self._next(limit, waiting)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what it has not read any more
            self._process.stdin.close()

    def _next(self, limit: float, waiting: Waiting | None) -> str:
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if waiting is not None:
                waiting()
            try:
                line = self._lines.get(timeout=_EACH)
            except queue.Empty:
                continue
            if not line.endswith(b"\n"):
                raise self._end()
            return line.decode("utf-8", "replace").strip()
        raise _Ended(
            f"kept the process that looked at it busy for more than {limit:.0f} s",
            f"it gave no answer for {limit:.0f} s",
        )

    def _end(self) -> _Ended:
        try:
            code: int | str = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = "unknown"
        return _Ended(
            f"ended the process that looked at it (code {code})", f"it ended with code {code}"
        )

    def _listen(self) -> None:
        with self._process.stdout as stream:  # type: ignore[union-attr]
            line = b"\n"
            while line.endswith(b"\n"):
                line = stream.readline(4 * _LONGEST)
                self._lines.put(line)


# --- in the other process -----------------------------------------------------------------------


def serve() -> None:
    """Answers requests until the other process closes the line. What libraries print is dropped."""
    incoming, outgoing = own_streams()

    def answer(line: str) -> None:
        outgoing.write(line.encode("utf-8", "replace") + b"\n")
        outgoing.flush()

    be_first_to_go()
    library()  # opens what it has to, before that is forbidden
    import gguf.constants  # noqa: F401  (likewise)

    if not confine() and sys.platform == "linux":
        answer(UNCONFINED)
        return
    answer(f"{READY}{data_bytes()}")
    for line in incoming:
        answer(_answer(parse_object(line)))


def _answer(request: dict[str, Any]) -> str:
    model, *adapters = (
        Path(os.fsdecode(bytes.fromhex(each))) for each in (request["model"], *request["adapters"])
    )
    name = model.name
    try:
        load(model, adapters, encoder=request["encoder"])
    except MemoryShortage as error:
        return SHORT + " ".join(str(error).split())
    except CaptError as error:
        return REFUSED + " ".join(str(error).split())
    except MemoryError:
        return f"{SHORT}{name} takes more memory than its header explains."
    return PASSED


def load(model: Path, adapters: Sequence[Path], *, encoder: bool = False) -> None:
    """Loads a model and checks every weight; splits a text and computes some tokens of it.

    Args:
        model: its file.
        adapters: likewise; each is put on the model by itself.
        encoder: whether it is one.

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
            check_values(library(), file)
    with Weights(model, replace(_OPTIONS, check_tensors=True)) as weights:
        tokens = weights.tokenize(_SAMPLE, special=False)[:_MOST_TOKENS] or [0]
        for options in (
            _OPTIONS,
            *(replace(_OPTIONS, adapters=(Adapter(path),)) for path in adapters),
        ):
            with LlamaModel(weights, options, name="The model") as opened:
                opened.extend(tokens)
