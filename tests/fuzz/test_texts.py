"""Generated texts under every pre-tokenizer: each is answered or refused for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import answered_texts
from tests.tokenization.test_long_texts import PRE_TOKENIZERS


def send(folder: Path, name: str, count: int) -> str:
    """The counts of the process that answers them; fails where it ends before the last one."""
    command = [sys.executable, answered_texts.__file__, str(folder), name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.returncode}, {done.stderr[-600:]}"
    return done.stdout


@pytest.mark.parametrize("name", ["gpt-2", "gpt-4o"])
def test_some_texts(name: str, tmp_path: Path) -> None:
    assert "generate answered" in send(tmp_path, name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_thousand_texts(name: str, tmp_path: Path) -> None:
    print(send(tmp_path, name, 1000))
