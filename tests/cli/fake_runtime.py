"""A runtime that says what it is told to, so that the command line can be tested without models."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles.verify import BackgroundDigests, Verification
from capt_local.decoding.options import DraftStats, FinishReason, Step
from capt_local.decoding.scoring import AnswerScore, ChoiceScores, TextScore
from capt_local.errors import Cancelled, ContextOverflow
from tests.report.answers import step


@dataclass
class Script:
    """What the fake does, and what it was asked.

    Attributes:
        pieces: (bytes, what the target would have said instead or None) for each step.
        fail_at: which step raises `error`; -1 raises while loading, None never.
        press_at: the step behind which Ctrl-C is pressed; -2 is the first thought, -3 the next.
        longest: bytes of the longest answer that can be scored.
        calls: the arguments of every open and generate.
    """

    pieces: list[tuple[bytes, bytes | None]] = field(
        default_factory=lambda: [(b"It is ", None), (b"pneumonia", b"a cold"), (b".", None)]
    )
    finish: FinishReason = FinishReason.STOP
    fail_at: int | None = None
    error: BaseException = field(default_factory=RuntimeError)
    press_at: int | None = None
    thoughts: list[bytes] = field(default_factory=list)
    longest: int = 100
    calls: list[dict[str, Any]] = field(default_factory=list)


class FakeGeneration:
    """Yields the steps of the script."""

    def __init__(self, script: Script, cancel: Callable[[], bool]) -> None:
        self._script, self._cancel = script, cancel
        self.text_bytes = b""
        self.finish: FinishReason | None = None
        self.prompt_tokens = {"target": 10, "expert": 12, "base": 12}
        self.context_limit = 256
        self.structured: bool | None = None
        self.thoughts_bytes = b""
        self.weights = (((1.0, 0.5, 0.5), 1.0),)
        self.prompt_seconds, self.generate_seconds = 0.5, 1.0
        self.stats = DraftStats()
        self.notices = ["a notice of the generation"]

    def __iter__(self) -> Iterator[Step]:
        script = self._script
        for index, piece in enumerate(script.thoughts):
            if self._cancel():
                self.finish = FinishReason.INTERRUPTED
                return
            self.thoughts_bytes += piece
            yield replace(step(index, piece), thought=True)
            if script.press_at == -2 - index:
                signal.raise_signal(signal.SIGINT)
        for index, (piece, instead) in enumerate(script.pieces):
            if script.fail_at == index:
                raise script.error
            if self._cancel():
                self.finish = FinishReason.INTERRUPTED
                return
            last = index == len(script.pieces) - 1
            self.finish = script.finish if last else None
            self.text_bytes += piece
            yield step(index, piece, instead=instead, finish=self.finish)
            if script.press_at == index:
                signal.raise_signal(signal.SIGINT)


def install(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """Puts the fake in the place of `capt_local.runtime`."""

    class FakeRuntime:
        def __init__(self, bundle: Any) -> None:
            self.bundle = bundle
            self.notices = list(bundle.notices)
            self.verification, self.background_digests = Verification(), BackgroundDigests(())
            self.template = None
            about = types.SimpleNamespace(
                architecture="llama", file_type="Q8_0", gpu_layers=0, devices={}
            )
            self.models = {
                role: types.SimpleNamespace(metadata=about, context_limit=256)
                for role in bundle.models
            }

        @classmethod
        def open(cls, bundle: Any, **options: Any) -> FakeRuntime:
            script.calls.append({"bundle": bundle, **options})
            options["progress"]("target", 1.0)
            if script.fail_at == -1:
                raise script.error
            return cls(bundle)

        def generate(self, asked: Any, options: Any, *, raw: bool, cancel: Any) -> FakeGeneration:
            script.calls.append({"asked": asked, "options": options, "raw": raw})
            return FakeGeneration(script, cancel)

        def score(self, text: bytes, options: Any, *, cancel: Any) -> TextScore:
            script.calls.append({"scored": text, "options": options})
            if script.press_at == len(script.calls) - 2:
                signal.raise_signal(signal.SIGINT)
            if cancel():
                raise Cancelled("stopped")
            return TextScore(8.0, 2, len(text), 1)

        def score_answer(
            self, asked: Any, answer: bytes, options: Any, *, raw: bool, cancel: Any, end: bool
        ) -> AnswerScore:
            script.calls.append({"asked": asked, "answer": answer, "raw": raw, "end": end})
            if len(answer) > script.longest:
                raise ContextOverflow({"target": len(answer)}, script.longest)
            return AnswerScore(4.0, 2, len(answer), greedy=True)

        def choose(
            self, asked: Any, choices: Any, options: Any, *, raw: bool, cancel: Any, how: Any
        ) -> ChoiceScores:
            script.calls.append({"asked": asked, "choices": choices, "how": how})
            scores = tuple(
                AnswerScore(float(i + 1), 1, len(c), False) for i, c in enumerate(choices)
            )
            return ChoiceScores(0, scores)

        def keep(self, asked: Any) -> dict[str, int]:
            script.calls.append({"kept": asked})
            return dict.fromkeys(self.models, 10 * len(asked))

        def forget(self) -> None:
            script.calls.append({"forgotten": True})

        def decoded(self) -> dict[str, int]:
            return dict.fromkeys(self.models, 30)

        def __enter__(self) -> FakeRuntime:
            return self

        def __exit__(self, *_: object) -> None:
            script.calls.append({"closed": True})

    module = types.ModuleType("capt_local.runtime")
    module.Runtime = FakeRuntime
    monkeypatch.setitem(sys.modules, "capt_local.runtime", module)


def model_flags(folder: Path) -> list[str]:
    """Flags that name three files; the fake does not open them."""
    flags = []
    for role in ("target", "expert", "base"):
        path = folder / f"{role}.gguf"
        path.write_bytes(b"GGUF")
        flags += [f"--{role}", str(path)]
    return flags
