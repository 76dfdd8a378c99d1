"""The dispatcher: help without heavy imports, verbs that exist, errors as one line."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from capt_local import errors
from capt_local.cli import app
from capt_local.cli.app import VERBS, below, function
from capt_local.cli.exits import ExitCode, code_for, line_for
from capt_local.prompting.messages import Message
from tests.cli.conftest import CANARY, Run
from tests.cli.fake_runtime import Script


def test_help_names_every_verb(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert re.findall(r"^  ([a-z]+)  ", result.out, re.M) == list(below())
    assert result.err == ""
    assert run().out == result.out == run("-h").out


# What stands in files needs no models.
WITHOUT_MODELS = {"explain", "models", "config"}


@pytest.mark.parametrize("name", [name for name, (module, _) in VERBS.items() if module])
def test_every_verb_has_a_function_and_help(name: str, run: Run) -> None:
    assert callable(function(name))
    result = run(*name.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: capt-local {name} [OPTIONS]")
    assert ("--bundle" in result.out) == (name.split()[0] not in WITHOUT_MODELS)


HEAVY = ("numpy", "typer", "rich", "llama_cpp", "jinja2", "psutil", "tomllib", "asyncio")


@pytest.mark.parametrize(
    ("verbs", "heavy"), [([], HEAVY), (["batch", "eval", "score", "bench"], ("numpy", "llama_cpp"))]
)
def test_help_imports_nothing_heavy(verbs: list[str], heavy: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from capt_local.cli.app import run\n"
        f"assert not any(run([*verb, '--help']) for verb in {[[each] for each in verbs] or [[]]})\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["generate", "--nonsense", "5"], ["generate", f"--{CANARY} and more"],
        ["generate", "-p"], ["generate", "-p", "x", CANARY],
        *(["generate", "-p", "x", flag, CANARY] for flag in ("--temp", "--method", "--alpha")),
        ["generate", "-p", "x", "-ngl", CANARY], ["generate", "-p", "x", "--top-p", "2"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_2(
    arguments: list[str], run: Run, script: Script
) -> None:
    models = ["{models}"] if arguments[0] != "nonsense" else []
    result = run(arguments[0], *models, *arguments[1:])
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.err) and CANARY not in result.err
    assert not script.calls


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("generate --tmp 1", "near: --temp"),
        (f"generate --method {CANARY}", "--method takes one of capt, target, expert, base, "),
        ("generate --top-logprobs 101", "--top-logprobs takes a whole number from 0 to 100"),
        ("chat -o x", "near: /save FILE"),
        (f"{CANARY}.txt", "capt-local generate -f FILE"),
        (f"models {CANARY}", "behind models; one of list, "),
    ],
)
def test_what_would_be_right_is_named(line: str, says: str, run: Run) -> None:
    result = run(*line.split())
    assert result.code == 2 and says in result.err and CANARY not in result.err


def test_doubtful_values_and_another_context_are_noted(run: Run, script: Script) -> None:
    result = run("generate", "{models}", "-p", "x", "--temp", "5", "-c", "200")
    assert result.code == 0 and "is usual" in result.err
    assert "the context holds 256 tokens instead of the 200 of --ctx-size" in result.err
    assert "usual" not in run("generate", "{models}", "-p", "x", "--alpha", "0.5").err


def test_a_system_text_of_a_file(run: Run, script: Script, tmp_path: Path) -> None:
    (rules := tmp_path / "rules.txt").write_text("Be brief.\r\n")
    assert run("generate", "{models}", "-p", "x", "--system-file", str(rules)).code == 0
    assert script.calls[1]["asked"][0] == Message("system", "Be brief.")
    assert run("generate", "-p", "x", "--system", "a", "--system-file", str(rules)).code == 2


def test_every_kind_of_error_has_its_code() -> None:
    codes = {
        "UsageError": 2, "ModelError": 3, "NumericalError": 3, "BackendFailed": 3,
        "WorkerFailed": 3, "MemoryShortage": 4, "ContextOverflow": 5, "TextTooLong": 5,
        "UnspellableText": 5, "Cancelled": 130,
    }  # fmt: skip
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [k for k in kinds if issubclass(k, errors.CaptError) and k is not errors.CaptError]
    assert {kind.__name__: kind.exit_code for kind in kinds} == codes
    assert code_for(KeyboardInterrupt()) == 130 and code_for(RuntimeError("x")) == 1


def test_an_unforeseen_error_tells_type_and_place_but_not_its_message() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        line = line_for(error)
    assert "KeyError" in line
    assert "test_app.py:" in line
    assert CANARY not in line


def test_nor_does_one_in_a_thread_or_a_destructor(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __del__(self) -> None:
            raise KeyError(CANARY)

    def run(_: object) -> int:
        thread = threading.Thread(target=lambda: {}[CANARY])
        thread.start()
        thread.join()
        Odd()
        return 0

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(app, "run", run)
    with pytest.raises(SystemExit):
        app.main([])
    said = capfd.readouterr().err
    assert said.count("unexpected KeyError at") == 2 and CANARY not in said
