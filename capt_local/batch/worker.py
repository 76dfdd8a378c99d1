"""The worker process: the models live here, and whatever they do, the run goes on without them.

It reads from standard input and writes to standard output (see `wire`); what libraries print goes
nowhere. It knows neither files nor ids, and it ends when the run's process does.

What it is told: `open`, then `ask` for each record, then `end`.
What it says: `hello`, `loading`, `ready`, `begun` when a record is taken, `alive` while it
computes, `answered` or `failed` when a record is done, and `fatal` before it ends because of an
error.
"""

from __future__ import annotations

import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from capt_local.batch import wire
from capt_local.batch.answering import answer_object_of
from capt_local.batch.asks import from_message
from capt_local.batch.opening import Opening
from capt_local.batch.output import code_of
from capt_local.batch.packing import unpacked
from capt_local.decoding.many.asks import Answered, Ask
from capt_local.errors import CaptError, place_of
from capt_local.version import __version__

Progress = Callable[[str, float], None]
OpenModels = Callable[[Opening, Progress], Any]
Facts = Callable[[], dict[str, Any]]
_EACH = 0.01  # of a file; how often loading is told
_ALIVE = 1.0  # seconds after which it says that it goes on


def main(open_models: OpenModels | None = None, hello: Facts | None = None) -> None:
    """Serves until the run has ended.

    Args:
        open_models: loads the models; None for those of the bundle.
        hello: what is said first; None for `facts`.
    """
    from capt_local.engine.hardening import be_first_to_go, keep_memory_private

    be_first_to_go()
    keep_memory_private()
    # Signals of a terminal or a batch system are for the run, which then ends its worker.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    incoming, outgoing = _streams()
    Worker(incoming, outgoing, open_models or _open, hello or facts).serve()


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes, out of the way of whatever prints."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return incoming, outgoing


def _open(opening: Opening, progress: Progress) -> Any:
    from capt_local.runtime import Runtime

    return Runtime.open(
        opening.bundle,
        load=opening.load,
        progress=progress,
        check=opening.check,
        date=opening.day,
        roles=opening.options.method.roles,
    )


class Worker:
    """Answers what it is asked.

    Args:
        incoming: messages of the run.
        outgoing: messages to the run.
        open_models: loads the models; gives a `Runtime`.
        hello: what is known before.
    """

    def __init__(
        self,
        incoming: IO[bytes],
        outgoing: IO[bytes],
        open_models: OpenModels,
        hello: Facts,
    ) -> None:
        """Says nothing yet."""
        self._incoming, self._outgoing = incoming, outgoing
        self._open_models, self._hello = open_models, hello
        self._messages: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self._told: dict[str, float] = {}
        self._ended = False
        self._said = 0.0

    def serve(self) -> None:
        """Does everything from `hello` to the end."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._say({"hello": self._hello()})
            opening = unpacked(Opening, self._messages.get()["open"])
            with self._open_models(opening, self._tell_loading) as runtime:
                self._say({"ready": about(runtime)})
                self._answer(runtime, opening)
        except BrokenPipeError:
            return
        except CaptError as error:
            self._say({"fatal": type(error).__name__, "message": str(error)})
        except Exception as error:
            # The message of such an error may hold text of a record.
            where = f"{type(error).__name__} at {place_of(error)}"
            self._say({"fatal": "unexpected", "message": where})

    def _read(self) -> None:
        """Takes in messages as they come; without the run there is nothing left to do."""
        while (message := wire.receive(self._incoming)) is not None:
            self._messages.put(message)
        os._exit(0)

    def _say(self, message: wire.Message) -> None:
        wire.send(self._outgoing, message)
        self._said = time.monotonic()

    def _going_on(self) -> bool:
        """What the decoder asks between two steps; never a reason to stop.

        A worker that hangs is known by its not asking any more.
        """
        if time.monotonic() - self._said >= _ALIVE:
            self._say({"alive": True})
        return False

    def _tell_loading(self, role: str, share: float) -> None:
        if share >= 1.0 or abs(share - self._told.get(role, -1.0)) >= _EACH:
            self._told[role] = share
            self._say({"loading": role, "share": share})

    def _answer(self, runtime: Any, opening: Opening) -> None:
        while not self._ended:
            keys: list[int] = []
            asks = self._asks(opening, keys)
            # Also where it is one at a time: so answers have the same bits as side by side.
            many = runtime.generate_many(asks, parallel=opening.parallel, cancel=self._going_on)
            for answered in many:
                self._deliver(runtime.bundle.id, keys[answered.index], answered)

    def _asks(self, opening: Opening, keys: list[int]) -> Iterator[Ask]:
        """Records as they are wanted; one that cannot be asked is answered with its error.

        The run keeps more here than are answered at once, so waiting for the next one holds up
        nothing. Behind one that it gives alone it sends no other before the answer, so there the
        row ends for now.
        """
        alone = False
        while not alone:
            message = self._messages.get()
            if "end" in message:
                self._ended = True
                return
            key, alone = message["ask"], message.get("alone", False)
            self._say({"begun": key})
            try:
                prompt, options = from_message(message, opening.options)
            except CaptError as error:
                self._fail(key, error)
                continue
            keys.append(key)
            yield Ask(prompt, options, raw=opening.raw)

    def _deliver(self, model: str, key: int, answered: Answered) -> None:
        generation = answered.generation
        if answered.error is not None:
            self._fail(key, answered.error)
        elif generation is not None:
            answer = answer_object_of(model, generation, answered.steps)
            self._say({"answered": key, "answer": answer})

    def _fail(self, key: int, error: CaptError) -> None:
        self._say({"failed": key, "code": str(code_of(error)), "message": str(error)})


def facts() -> dict[str, Any]:
    """What is known before anything is loaded: versions, the build of llama.cpp and its devices."""
    import numpy

    from capt_local.engine.library import library

    build = library().build_info()
    return {
        "versions": {
            "capt_local": __version__,
            "llama_cpp_python": build.binding,
            "llama_cpp": build.llama_cpp,
            "numpy": numpy.__version__,
        },
        "build": {
            "platform": f"{platform.system()} {platform.machine()}",
            "llama_cpp": build.system_info,
        },
        # What is free on them changes, which they are does not.
        "devices": [f"{device.name}: {device.description}" for device in build.devices],
    }


def about(runtime: Any) -> dict[str, Any]:
    """What is known once the models are loaded."""
    return {
        "notices": list(runtime.notices),
        "models": {
            role: {
                "architecture": model.metadata.architecture,
                "quantization": model.metadata.file_type,
                "context": model.context_limit,
                "gpu_layers": model.metadata.gpu_layers,
            }
            for role, model in runtime.models.items()
        },
    }


if __name__ == "__main__":
    main()
