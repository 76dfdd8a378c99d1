"""install.sh with a stub for the program: what it does, and how it refuses what is wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from capt_local.bundles.sign import read_public
from scripts.wheelhouse.__main__ import write_sums
from tests.wheelhouse.stub import (
    make_stick,
    newer,
    program,
    refused,
    run,
    tell,
    version,
    versions,
    write_program,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the installer is for Linux and macOS")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stick with a stub for the program."""
    folder = tmp_path_factory.mktemp("master") / "stick"
    make_stick(folder)
    return folder


@pytest.fixture
def stick(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "a stick"))


def test_from_the_stick_to_the_next_command(stick: Path) -> None:
    before = sorted(stick.rglob("*"))
    result = run(stick)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"ready        {program(stick)} chat -m tiny"
    assert read_public(stick / "keys" / "maker.pub").fingerprint in result.stdout
    assert "compare it" in result.stdout
    assert version(stick) == "1.0"
    called = (stick.parent / "log").read_text().splitlines()
    assert called == [
        f"models|import|{stick}/bundle/tiny.capt|--key|{stick}/keys/maker.pub",
        f"models|trust|{stick}/keys/maker.pub",
    ]
    # Nothing but the program is anywhere, and nothing new on the stick.
    assert [each.name for each in (stick.parent / "home").iterdir()] == ["capt-local"]
    assert sorted(stick.rglob("*")) == before


def test_a_fingerprint_that_was_compared(stick: Path) -> None:
    right = read_public(stick / "keys" / "maker.pub").fingerprint
    assert "another one" in refused(stick, "--fingerprint", "0" * 64)
    assert not program(stick).exists()
    result = run(stick, "--fingerprint", right.upper())
    assert result.returncode == 0 and "compare it" not in result.stdout


FILES = (
    "wheelhouse.json", "requirements.txt", "bundle/tiny.capt", "keys/maker.pub", "install.py",
    "python-version", "wheels/capt_local-1.0-py3-none-any.whl",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(stick: Path, name: str) -> None:
    data = bytearray((stick / name).read_bytes())
    # A letter of a comment or text becomes another one, so that the installer itself still runs.
    place = data.index(b"Installs") if name == "install.py" else len(data) - 1
    data[place] ^= 1 if name != "python-version" else ord("\n") ^ ord(" ")
    (stick / name).write_bytes(data)
    assert f"{name} is damaged or was changed" in refused(stick)
    assert not program(stick).exists()


@pytest.mark.slow
def test_files_that_are_missing_and_sums_that_are_damaged(stick: Path) -> None:
    sums = (stick / "SHA256SUMS").read_text()
    for line in (
        "",
        "x",
        "0" * 64 + "  ./../above",
        "0" * 64 + "  /etc/passwd",
        "0" * 63 + "  ./a",
    ):
        (stick / "SHA256SUMS").write_text(sums + line + "\n")
        assert "of SHA256SUMS is damaged" in refused(stick)
    (stick / "SHA256SUMS").write_text(sums)
    for name in (*FILES, "SHA256SUMS"):
        (stick / name).rename(stick / "aside")
        assert f"{name} is missing" in refused(stick)
        (stick / "aside").rename(stick / name)
    assert not program(stick).exists()


def test_a_wheel_that_is_not_the_one_of_the_requirements(stick: Path) -> None:
    old = (stick / "requirements.txt").read_text()
    write_program(stick / "wheels", importing="print('changed')")
    tell(stick)
    assert (stick / "requirements.txt").read_text() != old
    (stick / "requirements.txt").write_text(old)
    (stick / "SHA256SUMS").unlink()
    write_sums(stick)
    assert "pip did not install the wheels: ERROR:" in refused(stick)
    assert not program(stick).exists()


def test_what_lies_on_the_stick_and_is_not_named_is_not_used(stick: Path) -> None:
    planted = "raise SystemExit('planted')\n"
    for name in ("json.py", "argparse.py", "venv.py", "sitecustomize.py"):
        (stick / name).write_text(planted)
    result = run(stick)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_settings_of_the_machine_do_not_reach_pip_or_python(stick: Path) -> None:
    trap = stick.parent / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text("raise SystemExit('trap')\n")
    configuration = stick.parent / "home" / ".config" / "pip" / "pip.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("[global]\nno-binary = :all:\n")
    result = run(
        stick, PIP_NO_BINARY=":all:", PIP_REQUIRE_VIRTUALENV="x", PIP_TARGET=str(trap),
        PIP_CONFIG_FILE=str(configuration), PYTHONPATH=str(trap), CAPT_LOCAL_BUNDLE="nowhere",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_a_newer_program_takes_the_place_and_an_older_one_only_if_wanted(stick: Path) -> None:
    for number, there in (("1.0", {"1.0"}), ("1.2", {"1.0", "1.2"}), ("1.10", {"1.2", "1.10"})):
        newer(stick, number)
        for _ in range(2):
            assert run(stick).returncode == 0
            assert (version(stick), versions(stick)) == (number, there)
    newer(stick, "1.9")
    assert "capt-local 1.10 is installed" in refused(stick)
    assert version(stick) == "1.10"
    assert run(stick, "--allow-older").returncode == 0
    assert version(stick) == "1.9"


def test_a_program_that_does_not_run_here_changes_nothing(stick: Path) -> None:
    assert run(stick).returncode == 0
    for doctor, part in (
        ("os.kill(os.getpid(), signal.SIGILL)", "processor of this machine lacks instructions"),
        ("print('problem: no memory'); sys.exit(4)", "does not run on this machine: problem: no"),
        ("sys.exit('error: a setting is wrong')", "this machine: error: a setting is wrong"),
        ("sys.exit(9)", "it ended with code 9"),
    ):
        newer(stick, "2.0", doctor=doctor)
        assert part in refused(stick)
        assert (version(stick), versions(stick)) == ("1.0", {"1.0"})


@pytest.mark.slow
def test_a_new_key_beside_others_has_to_be_compared(stick: Path) -> None:
    keys = stick.parent / "home" / "user" / "keys"
    keys.mkdir(parents=True)
    (keys / "other.pub").write_bytes(b"\xff no key, which counts as one")
    assert "other keys are trusted here" in refused(stick, code=3)
    assert not (stick.parent / "log").exists()
    right = read_public(stick / "keys" / "maker.pub").fingerprint
    assert run(stick, "--fingerprint", right).returncode == 0


@pytest.mark.slow
def test_a_bundle_that_is_not_taken_in(stick: Path) -> None:
    write_program(stick / "wheels", importing="sys.exit('error: it is older')")
    tell(stick)
    line = refused(stick, code=3)
    assert line.endswith("The program is installed, the bundle is not: error: it is older")
    assert version(stick) == "1.0"
    assert "trust" not in (stick.parent / "log").read_text()
