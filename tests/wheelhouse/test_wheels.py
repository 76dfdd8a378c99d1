"""What is read off wheels, and the requirements that come of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.wheelhouse.wheels import NotBuilt, read_wheels, requirements
from tests.wheelhouse.stub import repack, write_wheel

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


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("License: MIT", ("MIT",)),
        ("License: " + "a whole text " * 20, ()),
        ("License: x\nClassifier: License :: OSI Approved :: ISC License (ISCL)",
         ("ISC License (ISCL)",)),
        ("Classifier: Programming Language :: Python", ()),
    ],
)  # fmt: skip
def test_licences_of_older_metadata(tmp_path: Path, lines: str, found: tuple[str, ...]) -> None:
    text = f"Metadata-Version: 2.1\nName: a\nVersion: 1\n{lines}\n\nLicense: of the description\n"
    write_wheel(tmp_path, "a", "1", {"a-1.dist-info/METADATA": text})
    assert read_wheels(tmp_path)[0].licences == found


def test_requirements_name_all_but_pip(tmp_path: Path) -> None:
    for name in ("b", "a", "pip"):
        write_wheel(tmp_path, name, "1.0", {})
    wheels = read_wheels(tmp_path)
    assert requirements(wheels) == "".join(
        f"{wheel.name}==1.0 --hash=sha256:{wheel.sha256}\n" for wheel in wheels[:2]
    )


def test_two_wheels_of_one_package(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_wheel(tmp_path, "a", version, {})
    with pytest.raises(NotBuilt, match="two wheels of a"):
        read_wheels(tmp_path)


def test_what_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(NotBuilt, match="is no wheel"):
        read_wheels(tmp_path)


def test_a_wheel_that_was_put_together_again_installs(tmp_path: Path) -> None:
    wheel = repack("jinja2", tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(tmp_path / "there"), str(wheel)], check=True)
    assert (tmp_path / "there" / "jinja2" / "sandbox.py").is_file()
