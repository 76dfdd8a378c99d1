"""A worker process without models: `python -m tests.batch.fake_worker FOLDER`.

A prompt is a row of words that say what becomes of it: `die SIGNAL` ends the process, `once`
in front of it only the first time (FOLDER remembers), `refuse` and `overflow` fail, `wait SECONDS`
takes time and says nothing meanwhile, `busy SECONDS` asks whether to stop as the decoder does,
`break` is an exception with the prompt in its message, `interrupt`
presses Ctrl-C for the run. Anything else is answered with its own words
backwards, and its seed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capt_local.batch import worker
from capt_local.batch.supervisor import WorkerConfig, WorkerProcess
from capt_local.decoding.batching import Request, RequestResult
from capt_local.decoding.options import FinishReason
from capt_local.errors import ContextOverflow, NumericalError
from tests.report.answers import step

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class FakeRuntime:
    """Answers without models, several at once."""

    notices = ("a notice of the runtime",)
    models: dict[str, Any] = {}  # noqa: RUF012
    bundle = SimpleNamespace(id="fake")

    def __enter__(self) -> FakeRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generate_many(
        self, asks: Iterable[Request], *, parallel: int, cancel: Callable[[], bool]
    ) -> Iterator[RequestResult]:
        """As that of `Runtime`: lanes are filled first, then answered in turn."""
        coming = enumerate(asks)
        lanes = [*itertools.islice(coming, parallel)]
        while lanes:
            yield answered(*lanes.pop(0), cancel)
            lanes += itertools.islice(coming, parallel - len(lanes))


def answered(index: int, ask: Request, cancel: Callable[[], bool]) -> RequestResult:
    """What becomes of a prompt."""
    said = ask.prompt if isinstance(ask.prompt, str) else ask.prompt[-1].content
    words = said.split()
    match words:
        case ["once", *rest]:
            mark = FOLDER / f"seen-{'-'.join(rest)}"
            words = rest if not mark.exists() else ["survived"]
            mark.touch()
    match words:
        case ["die", name]:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(60)
        case ["exit", code]:
            os._exit(int(code))
        case ["interrupt"]:
            os.kill(os.getppid(), signal.SIGINT)
        case ["refuse"]:
            return RequestResult(
                index, None, (), NumericalError("The target's numbers are not finite.")
            )
        case ["overflow"]:
            return RequestResult(index, None, (), ContextOverflow({"target": 2000}, 1024))
        case ["break", *_]:
            raise TypeError(said)
        case ["wait", seconds]:
            time.sleep(float(seconds))
        case ["busy", seconds]:
            until = time.monotonic() + float(seconds)
            while time.monotonic() < until:
                assert not cancel()
                time.sleep(0.02)
    text = f"{' '.join(reversed(words))} {ask.options.sample.seed}".encode()
    last = step(0, text, finish=FinishReason.STOP)
    generation: Any = SimpleNamespace(
        text_bytes=text,
        finish=FinishReason.STOP,
        thoughts_bytes=b"",
        structured=None,
        prompt_tokens={"target": len(words)},
        context_limit=1024,
        weights=(),
        prompt_seconds=0.0,
        generate_seconds=0.0,
        notices=(),
        stats=None,
    )
    return RequestResult(index, generation, (last,), None)


def open_models(config: WorkerConfig, progress: Callable[[str, float], None]) -> Any:
    """Loads nothing; prints, as libraries do."""
    progress("target", 1.0)
    print("a library prints on standard output")
    return FakeRuntime()


def start_worker(folder: Path) -> WorkerProcess:
    """The process of this file."""
    return WorkerProcess([sys.executable, "-m", "tests.batch.fake_worker", str(folder)])


MACHINE = {
    "versions": {"capt_local": "1", "llama_cpp_python": "1", "llama_cpp": "1", "numpy": "1"},
    "build": {},
    "devices": ["CPU: a fake one"],
}

if __name__ == "__main__":
    worker.main(open_models, lambda: MACHINE)
