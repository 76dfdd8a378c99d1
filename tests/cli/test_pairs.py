"""Several pairs of expert and base on the command line, in the environment and in a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle, Defaults, roles
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Five model files by role."""
    places = {role: tmp_path / f"{role}.gguf" for role in roles(2)}
    for role, path in places.items():
        path.write_bytes(role.encode())
    return {role: str(path) for role, path in places.items()}


def flags(files: Mapping[str, str]) -> list[str]:
    return [part for role, path in files.items() for part in (f"--{role.split('-')[0]}", path)]


def opened(script: Script) -> dict[str, str]:
    """The files of the bundle that was opened, by role."""
    bundle = script.calls[0]["bundle"]
    return {role: str(model.path) for role, model in bundle.models.items()}


def asked(script: Script) -> Any:
    return next(call["options"] for call in script.calls if "asked" in call)


def test_flags_pair_up_in_their_order(run: Run, script: Script, files: dict[str, str]) -> None:
    assert run("generate", *flags(files), "-p", "x", "--alpha", "0.5,1").code == 0
    assert opened(script) == files
    assert asked(script).combine.alphas == (0.5, 1.0)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("base-2", "experts 2, bases 1: give each expert its base"),
        ("expert", "experts 1, bases 2: give each expert its base"),
        ("target", "--expert and --base need a --target"),
    ],
)
def test_what_does_not_pair_up_is_refused(
    run: Run, script: Script, files: dict[str, str], missing: str, problem: str
) -> None:
    del files[missing]
    result = run("generate", *flags(files), "-p", "x")
    assert (result.code, script.calls) == (2, [])
    assert problem in result.err and result.err.count("\n") == 1


def test_the_environment_separates_them_as_in_path(
    run: Run, script: Script, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("target", "expert", "base"):
        several = [path for name, path in files.items() if name.split("-")[0] == role]
        monkeypatch.setenv(f"CAPT_LOCAL_{role.upper()}", os.pathsep.join(several))
    assert run("generate", "-p", "x").code == 0
    assert opened(script) == files


@pytest.mark.parametrize(
    ("more", "alphas"),
    [
        ([], (0.5, 1.0)),
        (["--alpha", "2"], (2.0,)),
        (["--weights", "1,1,1,1,1"], ()),
        (["--method", "capt-paper"], (0.5,)),  # which uses the first pair
    ],
)
def test_what_a_bundle_says_about_its_pairs(
    run: Run,
    script: Script,
    files: dict[str, str],
    tmp_path: Path,
    more: list[str],
    alphas: tuple[float, ...],
) -> None:
    models = {role: describe(role, Path(path)) for role, path in files.items()}
    write_manifest(Bundle("two", models, defaults=Defaults(alphas=(0.5, 1.0))), tmp_path)
    assert run("generate", "-m", str(tmp_path), "-p", "x", *more).code == 0
    assert opened(script) == files
    assert asked(script).combine.alphas == alphas
