"""The dispatcher: help without heavy imports, verbs that exist, errors as one line."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from capt_local import errors
from capt_local.cli.app import VERBS, Verb
from capt_local.cli.exits import ExitCode, code_for, line_for
from tests.cli.conftest import Run

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
        ["generate", "-p", "x", "-n", "0"],
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


def test_an_option_that_is_nearly_right_gets_a_hint(run: Run, script: object) -> None:
    assert "--temp" in run("generate", "--tmp", "1").err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.ModelError("x"), 3),
        (errors.NumericalError("x"), 3),
        (errors.MemoryShortage("x"), 4),
        (errors.ContextOverflow({"target": 5}, 4), 5),
        (errors.Cancelled("x"), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert code_for(error) == code


def test_every_kind_of_error_has_a_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [k for k in kinds if issubclass(k, errors.CaptError) and k is not errors.CaptError]
    assert len(kinds) >= 6
    for kind in kinds:
        sizes: dict[type, tuple[object, ...]] = {
            errors.ContextOverflow: ({"target": 1}, 1),
            errors.TextTooLong: (2, 1),
            errors.UnspellableText: ("target", 4),
        }
        made = kind(*sizes.get(kind, ("x",)))
        assert code_for(made) is not ExitCode.UNEXPECTED


def test_an_unforeseen_error_tells_type_and_place_but_not_its_message() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        line = line_for(error)
    assert "KeyError" in line
    assert "test_app.py:" in line
    assert CANARY not in line


def test_shell_completion_knows_the_verbs() -> None:
    code = "from capt_local.cli.app import main; main()"
    environment = {
        "_CAPT_LOCAL_COMPLETE": "complete_bash",
        "COMP_WORDS": "capt-local ge",
        "COMP_CWORD": "1",
    }
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.stdout.split() == ["generate"]
