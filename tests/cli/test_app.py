"""The dispatcher: help without heavy imports, verbs that exist, errors as one line."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from capt_local import errors
from capt_local.cli import app
from capt_local.cli.exits import ExitCode, code_for, line_for
from capt_local.cli.verbs import VERBS, Verb
from capt_local.prompting.messages import Message
from tests.cli.conftest import Run, Stdin

CANARY = "zyzzyva-canary"


def test_help_names_every_verb(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert re.findall(r"^  ([a-z]+)  ", result.out, re.M) == [verb.name for verb in VERBS]
    assert result.err == ""
    assert run().out == result.out == run("-h").out


LEAVES = [
    ((*above, verb.name), verb)
    for above, verbs in [((), VERBS), *(((verb.name,), verb.verbs) for verb in VERBS)]
    for verb in verbs
    if not verb.verbs
]
# What stands in files needs no models.
WITHOUT_MODELS = {"explain", "models", "config"}


@pytest.mark.parametrize(
    ("names", "verb"), LEAVES, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_verb_has_a_function_and_help(names: tuple[str, ...], verb: Verb, run: Run) -> None:
    assert callable(
        getattr(importlib.import_module(f"capt_local.cli.{verb.module}"), "_".join(names))
    )
    result = run(*names, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: capt-local {' '.join(names)} [OPTIONS]")
    assert ("--bundle" in result.out) == (names[0] not in WITHOUT_MODELS)
    assert result.err == ""


def test_the_top_level_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "typer", "rich", "llama_cpp", "jinja2", "psutil", "tomllib", "asyncio")
    code = (
        "import sys\n"
        "from capt_local.cli.app import run\n"
        "assert run(['--help']) == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_help_of_a_verb_imports_neither_numpy_nor_the_engine() -> None:
    code = (
        "import sys\n"
        "from capt_local.cli.app import run\n"
        "assert not any(run([verb, '--help']) for verb in ('batch', 'eval', 'score', 'bench'))\n"
        "print([name for name in ('numpy', 'llama_cpp') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["generate", "--nonsense", "5"],
        ["generate", "-p", "x", CANARY],
        ["generate", f"--{CANARY} and more"],
        ["generate", "--temp", CANARY, "-p", "x"],
        ["generate", "--method", CANARY, "-p", "x"],
        ["generate", "-p"],
        ["generate", "-p", "x", "--alpha", CANARY],
        ["generate", "-p", "x", "--date", CANARY],
        ["generate", "-p", "x", "-ngl", CANARY],
        ["generate", "-p", "x", "--top-p", "2"],
        ["generate", "-p", "x", "-c", "0"],
        ["generate", "-p", "x", "--top-logprobs", "3"],
        ["generate", "-p", "x", "--stop", ""],
        ["demo", "--method", "target"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    arguments: list[str], run: Run, script: object
) -> None:
    models = ["{models}"] if arguments[0] != "nonsense" else []
    result = run(arguments[0], *models, *arguments[1:])
    assert result.code == ExitCode.USAGE
    assert result.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.err)
    assert CANARY not in result.err
    assert not script.calls  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--tmp", "1"], "near: --temp"),
        (["generate", "--no-verify"], "near: --verify never"),
        (["generate", "--method", CANARY], "--method takes one of capt, target, expert, base, "),
        (["generate", "--speed", CANARY], "--speed takes one of auto, exact-steps, "),
        (
            ["generate", "--top-logprobs", "101"],
            "--top-logprobs takes a whole number from 0 to 100",
        ),
        (["generate", "--temp", CANARY], "--temp takes a number."),
        ([f"{CANARY}.txt"], "capt-local generate -f FILE"),
        (["models", CANARY], "behind models; one of list, "),
    ],
)
def test_what_would_be_right_is_named(arguments: list[str], says: str, run: Run) -> None:
    result = run(*arguments)
    assert result.code == 2 and says in result.err and CANARY not in result.err


@pytest.mark.parametrize("flags", [["--alpha", "-1"], ["--temp", "5"], ["--weights", "4,1,0"]])
def test_a_doubtful_value_is_noted(flags: list[str], run: Run, script: object) -> None:
    result = run("generate", "{models}", "-p", "x", *flags)
    assert (result.code == 0 and "is usual" in result.err) or "are usual" in result.err
    assert "usual" not in run("generate", "{models}", "-p", "x", "--alpha", "0.5").err


def test_another_size_of_the_context_than_the_wanted_one_is_noted(run: Run, script: object) -> None:
    said = "the context holds 256 tokens instead of the 200 of --ctx-size"
    assert said in run("generate", "{models}", "-p", "x", "-c", "200").err
    assert "--ctx-size" not in run("generate", "{models}", "-p", "x", "-c", "256").err


def test_a_system_text_is_the_same_in_each_verb(run: Run, script: object, tmp_path: Path) -> None:
    (rules := tmp_path / "rules.txt").write_text("Be brief.\r\n")
    for verb, stdin in (("generate", None), ("chat", Stdin(b"x\n"))):
        for flags in (["--system", "Be brief."], ["--system-file", str(rules)]):
            script.calls.clear()  # type: ignore[attr-defined]
            prompt = ["-p", "x"] if verb == "generate" else []
            assert run(verb, "{models}", *prompt, *flags, stdin=stdin).code == 0
            asked = next(call["asked"] for call in script.calls if "asked" in call)  # type: ignore[attr-defined]
            assert asked[0] == Message("system", "Be brief.")
            stdin = Stdin(b"x\n") if stdin else None
    assert run("generate", "-p", "x", "--system", "a", "--system-file", str(rules)).code == 2


def test_every_kind_of_error_has_its_code() -> None:
    codes = {
        "UsageError": 2, "ModelError": 3, "NumericalError": 3, "WorkerFailed": 3,
        "MemoryShortage": 4, "ContextOverflow": 5, "TextTooLong": 5,
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


def test_shell_completion_knows_the_verbs() -> None:
    code = "from capt_local.cli.app import main; main()"
    environment = {
        "_CAPT_LOCAL_COMPLETE": "complete_bash",
        "COMP_WORDS": "capt-local ge",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.stdout.split() == ["generate"]
