"""What a chat costs beside the models, with a decoder that takes no time: the best of many."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from capt_local.cli.options import ModelFlags
from capt_local.cli.session import find_bundle, open_session
from capt_local.cli.signals import Signals
from capt_local.cli.talk import Talk
from capt_local.decoding.options import GenerateOptions
from capt_local.report.terminal import Screen
from tests.cli.fake_runtime import Script, install

TOKENS = 2000


@pytest.mark.slow
def test_first_token_and_streaming(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Script(pieces=[(b" word", None)] * TOKENS))
    places = {role: tmp_path / f"{role}.gguf" for role in ("target", "expert", "base")}
    for path in places.values():
        path.write_bytes(b"GGUF")
    flags = ModelFlags(target=places["target"], expert=[places["expert"]], base=[places["base"]])
    out, first, whole, alone = Stamped(), [], [], []
    screen = Screen(out, io.StringIO())
    with Signals() as signals:
        session = open_session(find_bundle(flags), flags, screen, signals)
        talk = Talk(session, signals, GenerateOptions(top=3))
        for _ in range(20):
            out.at.clear()
            begun = time.perf_counter()
            talk.ask("What helps?")
            whole.append(time.perf_counter() - begun)
            first.append(out.at[0] - begun)
        for _ in range(20):
            begun = time.perf_counter()
            steps = list(session.runtime.generate([], talk.options, raw=False, cancel=signals))
            alone.append(time.perf_counter() - begun)
    assert len(out.at) >= len(steps) == TOKENS
    with capsys.disabled():
        each = 1e3 * (min(whole) - min(alone)) / TOKENS
        print(
            f"\nchat beside the models: first token {1e3 * min(first):.2f} ms, with 19 turns of "
            f"{TOKENS} tokens before it {1e3 * first[-1]:.2f} ms; {each:.4f} ms a token"
        )
    assert min(first) < 0.05 and each < 0.2


class Stamped(io.StringIO):
    """Notes when it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def write(self, text: str) -> int:
        self.at.append(time.perf_counter())
        return len(text)
