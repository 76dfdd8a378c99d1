"""A crash at any stage of a verb leaves no core dump, which would hold the text of a patient."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="written for Linux's core files")

CRASH = """
import importlib, os, signal, sys
from capt_local.cli import app

def crash(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGSEGV)

class Crashing:
    def __getattr__(self, name):
        crash()

"""
TEXT = ["generate", "-t", "1", "-n", "2", "-p", "A note of a patient."]


def run(code: str, *arguments: str, folder: Path) -> list[str]:
    """Crashes in a terminal, in a folder of its own; what lies there afterwards."""
    import resource

    from tests.cli.terminal import Terminal

    terminal = Terminal(
        arguments,
        environment={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
        before=lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2),
        cwd=folder,
        command=(sys.executable, "-c", CRASH + code),
        timeout=120,
    )
    assert terminal.end() == -signal.SIGSEGV, terminal.text()
    return sorted(os.listdir(folder))


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def cores_are_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the hardening, the same crash leaves a core dump."""
    if not run("crash()", folder=tmp_path_factory.mktemp("control")):
        pytest.skip("this system writes no core files into the folder")


def test_a_crash_before_a_verb_has_read_anything(tmp_path: Path) -> None:
    code = "app._dispatch = crash\napp.run(sys.argv[1:])"
    for verb in ("generate", "serve"):
        assert run(code, verb, "x", folder=tmp_path) == []


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("sys:stdin", ["generate"]),
        ("capt_local.report.input_line:InputLine.ask", ["chat", "-t", "1"]),
        ("capt_local.bundles.verify:verify", TEXT),
        ("capt_local.llama.probe:probe_files", [*TEXT, "--target", "PROXY"]),
        ("capt_local.llama.weights:Weights._load", TEXT),
        ("capt_local.llama.model:LlamaModel.extend", TEXT),
    ],
    ids=["standard input", "a conversation", "digests", "first look", "loading", "computing"],
)
def test_a_crash_at_a_stage(tmp_path: Path, place: str, arguments: list[str]) -> None:
    module, _, names = place.partition(":")
    *outer, name = names.split(".")
    owner = ".".join(["module", *outer])
    what = "Crashing()" if name == "stdin" else "crash"
    code = (
        f"module = importlib.import_module({module!r})\n"
        f"setattr({owner}, {name!r}, {what})\napp.run(sys.argv[1:])"
    )
    proxy = str(ROOT / "models" / "demo" / "expert.gguf")
    words = [proxy if word == "PROXY" else word for word in arguments]
    assert run(code, *words, folder=tmp_path) == []


def test_a_crash_of_a_worker_of_batch(tmp_path: Path) -> None:
    code = (
        "import capt_local.batch.worker as worker\n"
        "sys.stdin = sys.stdout = Crashing()\nos.dup = os.fdopen = crash\nworker.main()"
    )
    assert run(code, folder=tmp_path) == []
