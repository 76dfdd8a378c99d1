"""A runtime that answers evaluations by a rule, so that harness and verb need no models."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from capt_local.bundles.verify import BackgroundDigests, Verification
from capt_local.decoding.options import FinishReason
from capt_local.decoding.scoring import AnswerScore, ChoiceCriterion, ChoiceScores, TextScore
from capt_local.errors import Cancelled


@dataclass
class Rules:
    """What the fake does, and what it was asked."""

    # From method, prompt and seed to an answer; it may raise.
    say: Callable[[str, str, int], str] = lambda method, prompt, seed: "yes"
    finish: FinishReason = FinishReason.STOP  # of every answer
    press_at: int | None = None  # the number of the call in which Ctrl-C is pressed
    # Verb, method, prompt and options of every call, probes without a prompt left out.
    calls: list[tuple[str, str, str, Any]] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)  # arguments of every open
    forgotten: int = 0  # how often the caches were emptied

    def count(self, verb: str, prompt: str, options: Any, cancel: Callable[[], bool]) -> None:
        """Notes a call; where it is interrupted, it ends as the real one does."""
        self.calls.append((verb, options.method.value, prompt, options))
        if self.press_at == len(self.calls):
            signal.raise_signal(signal.SIGINT)
        if cancel():
            raise Cancelled("stopped")


class _Generation:
    def __init__(self, text: bytes, finish: FinishReason) -> None:
        self.text, self.finish, self.steps_done = text.decode(), finish, 3
        self.notices: list[str] = []

    def __iter__(self) -> Iterator[None]:
        return iter([None] * self.steps_done)


class FakeRuntime:
    """Answers by the rules; each call decodes ten tokens."""

    def __init__(self, rules: Rules, bundle: Any = None) -> None:
        self.rules = rules
        self.bundle = bundle
        self.notices: list[str] = []
        self.verification, self.background_digests = Verification(), BackgroundDigests(())
        self.template = None
        about = types.SimpleNamespace(
            architecture="llama", file_type="Q8_0", gpu_layers=0, devices={}
        )
        model = types.SimpleNamespace(metadata=about, context_limit=256)
        self.models = {role: model for role in bundle.models} if bundle else {}

    def generate(
        self, prompt: Any, options: Any, *, raw: bool = False, cancel: Any = None
    ) -> _Generation:
        if prompt == "-":  # a probe
            return _Generation(b"", FinishReason.STOP)
        text = asked(prompt)
        try:
            self.rules.count("generate", text, options, cancel)
        except Cancelled:
            return _Generation(b"", FinishReason.INTERRUPTED)
        answer = self.rules.say(options.method.value, text, options.sample.seed)
        return _Generation(answer.encode(), self.rules.finish)

    def choose(
        self,
        prompt: Any,
        choices: Sequence[str],
        options: Any,
        *,
        raw: bool,
        how: ChoiceCriterion = ChoiceCriterion.LIKELIHOOD,
        cancel: Any,
    ) -> ChoiceScores:
        text = asked(prompt)
        self.rules.count(f"choose {how}", text, options, cancel)
        index = list(choices).index(self.rules.say(options.method.value, text, 0))
        scores = tuple(
            AnswerScore(nats=float(number != index), tokens=2, size=len(choice), greedy=False)
            for number, choice in enumerate(choices)
        )
        return ChoiceScores(index, scores)

    def score(self, text: bytes, options: Any, *, cancel: Any) -> TextScore:
        self.rules.count("score", text.decode(), options, cancel)
        nats = float(self.rules.say(options.method.value, text.decode(), 0))
        return TextScore(nats, 5, len(text), 1)

    def forget(self) -> None:
        self.rules.forgotten += 1

    def decoded(self) -> dict[str, int]:
        return {"target": 10 * len(self.rules.calls)}

    def __enter__(self) -> FakeRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def asked(prompt: Any) -> str:
    """The words of a prompt."""
    return prompt if isinstance(prompt, str) else "\n".join(one.content for one in prompt)


def install(monkeypatch: pytest.MonkeyPatch, rules: Rules) -> None:
    """Puts the fake in the place of `capt_local.runtime`."""

    class Opened(FakeRuntime):
        @classmethod
        def open(cls, bundle: Any, **options: Any) -> Opened:
            rules.opened.append(options)
            return cls(rules, bundle)

    module = types.ModuleType("capt_local.runtime")
    module.Runtime = Opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "capt_local.runtime", module)
