"""What makes a stick: flags of the binding, wheels, the bill of materials; nothing is compiled."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from capt_local.bundles.sign import new_key
from capt_local.errors import CaptError
from scripts.real_vocabularies import VERSION
from scripts.wheelhouse import __main__ as script
from scripts.wheelhouse import wheels as binding
from scripts.wheelhouse.__main__ import PROJECT
from scripts.wheelhouse.wheels import (
    NotBuilt,
    bill_of_materials,
    binding_wheel,
    read_wheels,
    requirements,
)
from tests.bundles.travelling import make_trio
from tests.wheelhouse.stub import write_wheel


def test_wheels_of_other_flags_are_kept_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[tuple[str, ...], str]] = []

    def fake(*arguments: str, CMAKE_ARGS: str) -> None:
        calls.append((arguments, CMAKE_ARGS))
        (folder,) = (each.partition("=")[2] for each in arguments if "--wheel-dir=" in each)
        (Path(folder) / f"llama_cpp_python-{VERSION}-py3-none-any.whl").write_text(CMAKE_ARGS)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(binding, "pip", fake)

    def made(given: Path | None = None) -> Path:
        return binding_wheel(PROJECT, given, lambda _: None)

    text = made().read_text()
    assert "-DGGML_NATIVE=OFF" in text and "-DGGML_AVX2=ON" in text and "AVX512" not in text
    assert {"--no-cache-dir", "--no-binary=llama-cpp-python"} <= set(calls[0][0])
    assert made() == made() and len(calls) == 1
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    assert made().read_text().endswith("-DGGML_NATIVE=ON") and len(calls) == 2
    (tmp_path / "numpy-1.0-py3-none-any.whl").touch()
    with pytest.raises(NotBuilt, match=f"is no wheel of llama-cpp-python {VERSION}"):
        made(tmp_path / "numpy-1.0-py3-none-any.whl")


ABOUT = """\
Metadata-Version: 2.4
Name: Some.Thing
Version: 1.2
"""


def test_what_a_wheel_says_of_itself(tmp_path: Path) -> None:
    files = {"some_thing-1.2.dist-info/METADATA": ABOUT, "a.py": "x" * 1000}
    path = write_wheel(tmp_path, "some_thing", "1.2", files)
    (wheel,) = read_wheels(tmp_path)
    assert (wheel.name, wheel.version, wheel.path) == ("some-thing", "1.2", path)
    assert wheel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert wheel.unpacked > 1000
    write_wheel(tmp_path, "pip", "1.0", {})
    assert requirements(read_wheels(tmp_path)) == (
        f"some-thing==1.2 --hash=sha256:{wheel.sha256}\n"  # pip itself is left out
    )
    (tmp_path / "odd-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(NotBuilt, match="is no wheel"):
        read_wheels(tmp_path)


LICENSED = """\
Metadata-Version: 2.4
Name: capt-local
Version: 1.0+cpu
License-Expression: MIT OR Apache-2.0
Requires-Dist: Some_Thing>=1
Requires-Dist: pip; python_version >= "3"
Requires-Dist: other; python_version < "3"
Requires-Dist: extra; extra == "more"
"""


def test_the_bill_of_materials(tmp_path: Path) -> None:
    files = {"capt_local-1.0+cpu.dist-info/METADATA": LICENSED}
    write_wheel(tmp_path, "capt-local", "1.0+cpu", files)
    write_wheel(tmp_path, "some.thing", "1.2", {})
    for name in ("pip", "llama-cpp-python"):
        write_wheel(tmp_path, name, "1.0", {})
    bundle = make_trio(tmp_path / "bundle")
    text = bill_of_materials("capt-local", read_wheels(tmp_path), bundle, "-DA=ON")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    whole = json.loads(text)
    root = whole["metadata"]["component"]
    assert root["purl"] == "pkg:pypi/capt-local@1.0%2Bcpu"
    assert root["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    found = {each["name"]: each for each in whole["components"]}
    models = {f"{bundle.id}/{model.path.name}": model for model in bundle.models.values()}
    assert set(found) == {"some-thing", "pip", "llama-cpp-python", *models}
    assert found["llama-cpp-python"]["components"][0]["name"] == "llama.cpp"
    for name, model in models.items():
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": model.sha256}]
    needs = {each["ref"]: each.get("dependsOn", []) for each in whole["dependencies"]}
    own = [found[name]["bom-ref"] for name in ("pip", "some-thing")]
    assert sorted(needs[root["bom-ref"]]) == sorted(own)


# --- what is wrong is found before anything is compiled, and nothing is left of it


class Compiled(Exception):
    """So far nothing was wrong."""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle beside a key."""

    def compile_it(*_: object) -> Path:
        raise Compiled

    monkeypatch.setattr(script, "binding_wheel", compile_it)
    new_key(tmp_path / "maker")
    make_trio(tmp_path / "trio")
    return tmp_path / "trio"


def refused(bundle: Path, *more: str, key: str = "--key") -> str:
    before = sorted(bundle.parent.rglob("*"))
    command = ["-o", str(bundle.parent / "stick"), f"{key}={bundle.parent}/maker.key", *more]
    with pytest.raises((NotBuilt, CaptError)) as found:
        script.run(script.arguments(command))
    assert sorted(bundle.parent.rglob("*")) == before
    return str(found.value)


def test_what_will_not_do_is_found_before_the_build(bundle: Path) -> None:
    own, key = ("--bundle", str(bundle)), bundle.parent / "maker.key"
    assert refused(bundle, "--bundle", "nowhere").startswith("No bundle has the id 'nowhere'")
    assert "are there already" in refused(bundle, *own, key="--new-key")
    with pytest.raises(Compiled):
        script.run(script.arguments(["-o", f"{bundle}.stick", "--key", str(key), *own]))
    (bundle / "base.gguf").write_bytes(b"x" * (bundle / "base.gguf").stat().st_size)
    assert "SHA-256 differs" in refused(bundle, *own)
    key.chmod(0o644)
    assert refused(bundle, *own).startswith("Others may read maker.key")
    key.unlink()
    assert "maker.key is not there" in refused(bundle, *own)
