"""The whole way: a real wheelhouse is built, and installs where there is no network at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.wheelhouse.__main__ import PROJECT
from tests.wheelhouse.stub import needed, repack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the installer is for Linux and macOS"),
]
_ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
NEEDS, BUILDING = _ABOUT["project"]["dependencies"], _ABOUT["build-system"]["requires"]


@dataclass(frozen=True)
class Built:
    """What the script made, and what it said."""

    stick: Path
    key: Path
    said: str


@pytest.fixture(scope="module")
def alone() -> Sequence[str]:
    """What stands before a command so that it has no network: a namespace without any route.

    Settings of this machine's site are hidden there, too.
    """
    hidden = 'test ! -d /etc/capt-local || mount -t tmpfs none /etc/capt-local; exec "$@"'
    command = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-ec", hidden, "sh"]
    if shutil.which("unshare") and not subprocess.run([*command, "true"], check=False).returncode:
        return command
    warnings.warn("no network namespace is allowed here, so the network was there", stacklevel=1)
    return []


def done(*command: str, **how: Any) -> subprocess.CompletedProcess[str]:
    more = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    return subprocess.run(command, **{**more, **how})


@pytest.fixture(scope="module")
def built(alone: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Made of the packages that are installed here, so that neither network nor compiler is used.

    The binding is the one of the tests; how it is built by flags is shown in test_build.py.
    """
    folder = tmp_path_factory.mktemp("built")
    index, home, stick = folder / "index", folder / "home", folder / "stick"
    index.mkdir()
    home.mkdir()
    for name in sorted(needed([*NEEDS, *BUILDING, "pip"])):
        repack(name, index, compiled=name == "pip")
    (wheel,) = index.glob("llama_cpp_python-*.whl")
    script = str(PROJECT / "scripts" / "build_wheelhouse.sh")
    environment = {
        "HOME": str(home), "PATH": os.environ["PATH"], "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull,
    }  # fmt: skip
    keys = ["--new-key", str(folder / "maker.key")]
    result = done(*alone, script, "-o", str(stick), *keys, "--wheel", str(wheel), env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    shutil.rmtree(index)
    return Built(stick, folder / "maker.key", result.stdout)


def test_from_the_stick_to_the_first_answer_in_two_commands(
    built: Built, alone: Sequence[str], tmp_path: Path
) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHON": sys.executable}

    def run(*command: str) -> str:
        result = done(*alone, *command, env=environment, cwd="/")
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    if alone:
        assert len(run("cat", "/proc/net/route").splitlines()) <= 1  # the heading
    began = time.monotonic()
    said = run("sh", str(built.stick / "install.sh"))
    installed = time.monotonic()
    program, demo = said.splitlines()[-1].split()[1:]
    answer = run(program, demo, "-t", "1", "-n", "24")
    print(f"installed in {installed - began:.1f} s, demo in {time.monotonic() - installed:.1f} s")
    assert "target alone" in answer.lower()
    assert re.search(r"demo [\d.]+ is installed: signed by maker \([0-9a-f]{64}\)", said)
    listed = json.loads(run(program, "models", "list", "--json"))
    assert [each["id"] for each in listed["bundles"]] == ["demo"]
    imported = tmp_path / ".local" / "share" / "capt-local" / "models" / "demo"
    run(program, "models", "verify", str(imported))


def test_the_sums_and_their_signature_with_tools_of_the_system(built: Built) -> None:
    tool = shutil.which("sha256sum")
    if tool:
        assert done(tool, "--check", "--quiet", "SHA256SUMS", cwd=built.stick).returncode == 0
    (public,) = (built.stick / "keys").iterdir()
    openssl = shutil.which("openssl")
    if openssl:
        command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin"]
        command += ["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"]
        assert "Success" in done(*command, cwd=built.stick).stdout
    lines = (built.stick / "SHA256SUMS").read_text().splitlines()
    named = {line.partition("  ./")[2] for line in lines}
    files = [path for path in built.stick.rglob("*") if path.is_file()]
    there = {path.relative_to(built.stick).as_posix() for path in files}
    assert there - named == {"SHA256SUMS", "SHA256SUMS.sig"} and not named - there


def test_the_bill_of_materials(built: Built) -> None:
    text = (built.stick / "sbom.cdx.json").read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {each["name"]: each for each in json.loads(text)["components"]}
    assert needed(NEEDS) <= set(found)
    target = "demo/SmolLM2-135M-Instruct.Q4_1.gguf"  # a file of a package
    assert {target, "demo/expert.gguf", "demo/base.gguf", "pip"} <= set(found)
    assert all(each["licenses"] for each in found.values()), "a licence is not stated"
