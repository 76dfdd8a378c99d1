"""llama.cpp in the process: loaded late, quiet, without dumps, only the right version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diskcache
import pytest

from capt_local.engine.library import BINDING_VERSION, library
from capt_local.engine.llama import LlamaModel
from tests.llama.conftest import ONE_THREAD


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_importing_the_engine_does_not_load_llama_cpp() -> None:
    code = "import sys, capt_local.engine.llama; print('llama_cpp' in sys.modules)"
    assert run(code).stdout == "False\n"


def test_loading_a_model_is_silent_and_forbids_dumps(tiny_path: Callable[..., Path]) -> None:
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from capt_local.engine.llama import LlamaModel\n"
        "with LlamaModel.open(Path(sys.argv[1])) as model:\n"
        "    model.extend([1, 2, 3])\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0\n"
        "assert os.environ['GGML_NO_BACKTRACE'] == '1'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_path())], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import os; os.environ['LLAMA_CPP_LIB_PATH'] = '/usr/lib'", "LLAMA_CPP_LIB_PATH"),
        ("import llama_cpp; llama_cpp.__version__ = '0.3.1'", f"exactly {BINDING_VERSION}"),
        ("import sys; sys.modules['llama_cpp'] = None", "is not installed"),
        (
            "import ctypes\n"
            "def fail(*args, **names): raise OSError('libgomp.so.1: cannot open')\n"
            "ctypes.CDLL = fail",
            "cannot be loaded",
        ),
    ],
)
def test_another_library_or_version_is_refused(before: str, said: str) -> None:
    code = (
        f"{before}\n"
        "from capt_local.engine.library import library\n"
        "from capt_local.errors import UsageError\n"
        "try: library()\n"
        "except UsageError as error: print(error)\n"
    )
    assert said in run(code).stdout


def test_the_build_is_described() -> None:
    info = library().build_info()
    assert info.binding == BINDING_VERSION
    assert info.llama_cpp
    assert "CPU" in info.system_info
    assert any(device.kind == "CPU" and device.total > 0 for device in info.devices)
    assert library() is library()


def test_the_log_keeps_the_reason_and_joins_continued_lines() -> None:
    lib = library()
    lib.forget_errors()
    assert lib.last_error() == ""
    lib._log(3, b"load: a warn", None)
    lib._log(5, b"ing\n", None)
    assert lib.last_error() == "a warning"
    lib._log(2, b"info: nothing\n", None)
    lib._log(4, b"load_model: the reason: why\n", None)
    lib._log(4, b"load_model_from_file: failed\n", None)
    assert lib.last_error() == "the reason: why"
    lib.forget_errors()


def test_the_cache_with_the_open_hole_is_never_made(
    tiny_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("diskcache was constructed")

    monkeypatch.setattr(diskcache.Cache, "__init__", refuse)
    with LlamaModel.open(tiny_path(), ONE_THREAD) as model:
        model.extend(model.tokenize(b"some text", special=False))
