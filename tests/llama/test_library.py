"""llama.cpp itself: loading it, its log, its memory, Ctrl-C in the middle of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diskcache
import pytest

from capt_local.errors import Cancelled
from capt_local.llama.library import BINDING_VERSION
from capt_local.llama.model import LlamaModel
from capt_local.llama.weights import Weights
from tests.llama.conftest import ONE_THREAD


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )


def test_loading_a_model_is_silent_and_forbids_dumps(tiny_path: Callable[..., Path]) -> None:
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from capt_local.llama.model import LlamaModel\n"
        "with LlamaModel.open(Path(sys.argv[1])) as model:\n"
        "    model.extend([1, 2, 3])\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0\n"
        "assert os.environ['GGML_NO_BACKTRACE'] == '1'\n"
    )
    done = run(code, str(tiny_path()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import os; os.environ['LLAMA_CPP_LIB_PATH'] = '/usr/lib'", "LLAMA_CPP_LIB_PATH"),
        ("import llama_cpp; llama_cpp.__version__ = '0.3.1'", f"exactly {BINDING_VERSION}"),
        ("import sys; sys.modules['llama_cpp'] = None", "is not installed"),
        (
            "import ctypes; real = ctypes.CDLL\n"
            "def fail(name, *args, **names):\n"
            "    if name is None: return real(None)\n"
            "    raise OSError('libgomp.so.1: cannot open')\n"
            "ctypes.CDLL = fail",
            "cannot be loaded",
        ),
    ],
)
def test_another_library_or_version_is_refused(before: str, said: str) -> None:
    code = (
        f"{before}\n"
        "from capt_local.llama.library import library\n"
        "from capt_local.errors import UsageError\n"
        "try: library()\n"
        "except UsageError as error: print(error)\n"
    )
    assert said in run(code).stdout


def test_the_cache_with_the_open_hole_is_never_made(
    tiny_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("diskcache was constructed")

    monkeypatch.setattr(diskcache.Cache, "__init__", refuse)
    with LlamaModel.open(tiny_path(), ONE_THREAD) as model:
        model.extend(model.tokenize(b"some text", special=False))


@pytest.fixture(autouse=True)
def default_handler() -> object:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(*_: object) -> bool:
    signal.raise_signal(signal.SIGINT)
    return False


def test_an_interrupt_in_a_long_text_arrives_and_leaves_the_position(model: LlamaModel) -> None:
    model.extend([1, 2, 3])
    model.should_stop = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.extend(list(range(100)))
    assert model.position == 3
    model.should_stop = None
    assert model.extend(list(range(100))).shape[0] == 1


def test_an_interrupt_while_loading_arrives(tiny_path: Callable[..., Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Weights(tiny_path(), progress=interrupt)
    signal.signal(signal.SIGINT, lambda *_: None)
    with pytest.raises(Cancelled, match=r"llama-bpe.gguf was stopped"):
        Weights(tiny_path(), progress=interrupt)
