"""With which flags the binding is built, and which wheels are taken for which flags."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.real_vocabularies import VERSION
from scripts.wheelhouse import wheels as binding
from scripts.wheelhouse.__main__ import PROJECT
from scripts.wheelhouse.sbom import bill
from scripts.wheelhouse.wheels import (
    Build,
    Wheel,
    binding_wheel,
    pinned,
    read_wheels,
    requirements,
)
from tests.wheelhouse.stub import repack, write_wheel


class Pip:
    """Stands for pip: notes its calls and makes an empty wheel."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], str]] = []

    def __call__(self, *arguments: str, CMAKE_ARGS: str) -> None:
        self.calls.append((arguments, CMAKE_ARGS))
        (folder,) = (each.partition("=")[2] for each in arguments if "--wheel-dir=" in each)
        (Path(folder) / "llama_cpp_python-1.0-py3-none-any.whl").write_text(CMAKE_ARGS)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pip:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    fake = Pip()
    monkeypatch.setattr(binding, "pip", fake)
    return fake


def made(**how: Any) -> Path:
    return binding_wheel(Build(**how), "1.0", lambda _: None)


def test_portable_is_the_default_and_never_comes_from_pips_cache(pip: Pip) -> None:
    text = made().read_text()
    assert "-DGGML_NATIVE=OFF" in text and "-DGGML_AVX2=ON" in text and "AVX512" not in text
    ((arguments, _),) = pip.calls
    assert {"--no-cache-dir", "--no-binary=llama-cpp-python"} <= set(arguments)
    assert Build().needs == ["avx", "avx2", "bmi2", "f16c", "fma"]


def test_the_version_is_that_of_the_package() -> None:
    assert pinned(PROJECT) == VERSION


ABOUT = """\
Metadata-Version: 2.4
Name: Some.Thing
Version: 1.2
License-Expression: MIT OR Apache-2.0
Requires-Dist: numpy>=1
Requires-Dist: Typing_Extensions; python_version >= "3"
Requires-Dist: other; python_version < "3"
Requires-Dist: extra; extra == "more"
"""


def test_what_a_wheel_says_of_itself(tmp_path: Path) -> None:
    files = {"some_thing-1.2.dist-info/METADATA": ABOUT, "a.py": "x" * 1000}
    path = write_wheel(tmp_path, "some_thing", "1.2", files)
    (wheel,) = read_wheels(tmp_path)
    assert (wheel.name, wheel.version, wheel.path) == ("some-thing", "1.2", path)
    assert wheel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (wheel.expression, wheel.licences) == ("MIT OR Apache-2.0", ())
    assert wheel.needs == ("numpy", "typing-extensions")
    assert wheel.unpacked > 1000


def test_requirements_name_all_but_pip(tmp_path: Path) -> None:
    for name in ("b", "a", "pip"):
        write_wheel(tmp_path, name, "1.0", {})
    wheels = read_wheels(tmp_path)
    assert requirements(wheels) == "".join(
        f"{wheel.name}==1.0 --hash=sha256:{wheel.sha256}\n" for wheel in wheels[:2]
    )


def test_a_wheel_that_was_put_together_again_installs(tmp_path: Path) -> None:
    wheel = repack("jinja2", tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(tmp_path / "there"), str(wheel)], check=True)
    assert (tmp_path / "there" / "jinja2" / "sandbox.py").is_file()


MODEL = {
    "type": "machine-learning-model",
    "name": "tiny/target.gguf",
    "version": "1",
    "sha256": "ab" * 32,
    "licence": "llama3",
    "source": "",
}


def wheel(name: str, needs: tuple[str, ...] = (), expression: str = "", *licences: str) -> Wheel:
    path = Path(f"{name}-1.0+cpu-py3-none-any.whl")
    return Wheel(path, name, "1.0+cpu", "cd" * 32, 10, expression, licences, needs)


@pytest.fixture
def whole() -> dict[str, Any]:
    wheels = [
        wheel("capt-local", ("llama-cpp-python", "numpy", "not-there"), "Apache-2.0"),
        wheel("llama-cpp-python", ("numpy",), "", "MIT"),
        wheel("numpy", (), "BSD-3-Clause AND MIT"),
        wheel("pip", (), "MIT"),
        wheel("odd", (), "", "ISC License (ISCL)", "and another one"),
    ]
    build = {"backend": "cpu", "cmake_args": ["-DA=ON", "-DB=OFF"]}
    text = bill("capt-local", wheels, [MODEL], build)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert problem is None, problem
    return json.loads(text)


def test_everything_is_named_once(whole: dict[str, Any]) -> None:
    assert whole["metadata"]["component"]["purl"] == "pkg:pypi/capt-local@1.0%2Bcpu"
    names = sorted(each["name"] for each in whole["components"])
    assert names == ["llama-cpp-python", "numpy", "odd", "pip", "tiny/target.gguf"]
    references = [each["bom-ref"] for each in whole["components"]]
    assert len(set(references)) == len(references)


def test_what_needs_what(whole: dict[str, Any]) -> None:
    found = {each["ref"]: each.get("dependsOn", []) for each in whole["dependencies"]}
    assert found["pkg:pypi/capt-local@1.0%2Bcpu"] == [
        "pkg:pypi/llama-cpp-python@1.0%2Bcpu",
        "pkg:pypi/numpy@1.0%2Bcpu",
    ]
    assert found["pkg:pypi/numpy@1.0%2Bcpu"] == []
