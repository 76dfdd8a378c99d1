"""The bill of materials against the strict schema, and what stands in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.wheelhouse.sbom import bill
from scripts.wheelhouse.wheels import Wheel

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


def test_digests_and_licences(whole: dict[str, Any]) -> None:
    found = {each["name"]: each for each in whole["components"]}
    assert found["numpy"]["hashes"] == [{"alg": "SHA-256", "content": "cd" * 32}]
    assert found["numpy"]["licenses"] == [{"expression": "BSD-3-Clause AND MIT"}]
    names = {each["license"]["name"] for each in found["odd"]["licenses"]}
    assert names == {"ISC License (ISCL)", "and another one"}
    model = found["tiny/target.gguf"]
    assert (model["type"], model["hashes"][0]["content"]) == ("machine-learning-model", "ab" * 32)
    assert model["licenses"] == [{"license": {"name": "llama3"}}]
    assert model["description"] == "source: not stated"
    assert found["pip"]["scope"] == "excluded"


def test_what_needs_what(whole: dict[str, Any]) -> None:
    found = {each["ref"]: each.get("dependsOn", []) for each in whole["dependencies"]}
    assert found["pkg:pypi/capt-local@1.0%2Bcpu"] == [
        "pkg:pypi/llama-cpp-python@1.0%2Bcpu",
        "pkg:pypi/numpy@1.0%2Bcpu",
    ]
    assert found["pkg:pypi/numpy@1.0%2Bcpu"] == []


def test_how_the_binding_was_built(whole: dict[str, Any]) -> None:
    (binding,) = (each for each in whole["components"] if each["name"] == "llama-cpp-python")
    assert [each["name"] for each in binding["components"]] == ["llama.cpp"]
    values = {each["name"]: each["value"] for each in binding["properties"]}
    assert values["capt-local:file"].startswith("wheels/llama-cpp-python-1.0")
    assert values["capt-local:build:backend"] == "cpu"
    assert values["capt-local:build:cmake_args"] == "-DA=ON -DB=OFF"


def test_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    one, two = (bill("a", [wheel("a")], [], {}) for _ in range(2))
    assert one == two
    assert json.loads(one)["metadata"]["timestamp"] == "1970-01-01T00:00:00+00:00"
    assert json.loads(bill("a", [wheel("a", (), "MIT")], [], {}))["serialNumber"] not in one
