"""With which flags the binding is built, and which wheels are taken for which flags."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from scripts.real_vocabularies import VERSION
from scripts.wheelhouse import wheels as binding
from scripts.wheelhouse.__main__ import PROJECT
from scripts.wheelhouse.wheels import Backend, Build, NotBuilt, Processor, binding_wheel, pinned


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


def test_arm_has_no_flags_of_x86(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert Build().flags == ("-DGGML_NATIVE=OFF",)
    assert Build().needs == []


def test_a_native_one_may_come_from_pips_cache(pip: Pip) -> None:
    assert made(processor=Processor.NATIVE).read_text() == ""
    assert "--no-cache-dir" not in pip.calls[0][0]
    assert Build(processor=Processor.NATIVE).needs == []


@pytest.mark.parametrize("backend", [Backend.CUDA, Backend.METAL])
def test_other_backends(pip: Pip, backend: Backend) -> None:
    assert f"-DGGML_{backend.name}=ON" in made(backend=backend).read_text()


def test_wheels_are_kept_apart_by_their_flags(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made()
    assert made() == first
    assert len(pip.calls) == 1
    assert made(backend=Backend.CUDA) != first
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_OPENMP=OFF")
    other = made()
    assert other != first and other.read_text().endswith(" -DGGML_OPENMP=OFF")
    assert len(pip.calls) == 3


def test_a_wheel_that_is_given(pip: Pip, tmp_path: Path) -> None:
    wheel = tmp_path / "llama_cpp_python-1.0-py3-none-linux_x86_64.whl"
    wheel.write_text("")
    assert made(given=wheel) == wheel
    assert (Build(given=wheel).told(), Build(given=wheel).needs) == ({"given": wheel.name}, [])
    assert not pip.calls


@pytest.mark.parametrize("name", ["llama_cpp_python-1.1-py3-none-any.whl", "numpy-1.0-x.whl"])
def test_a_wheel_of_another_version_or_package(pip: Pip, tmp_path: Path, name: str) -> None:
    wheel = tmp_path / name
    with pytest.raises(NotBuilt, match="There is no wheel"):
        made(given=wheel)
    wheel.write_text("")
    with pytest.raises(NotBuilt, match=r"is no wheel of llama-cpp-python 1\.0"):
        made(given=wheel)


def test_the_version_is_that_of_the_package() -> None:
    assert pinned(PROJECT) == VERSION


def test_a_package_that_pins_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["llama-cpp-python>=0.3"]')
    with pytest.raises(NotBuilt, match="pins no version"):
        pinned(tmp_path)
