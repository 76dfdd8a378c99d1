"""install.sh over an earlier installation, and with a program that does not run on this machine."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tests.wheelhouse.stub import newer, refused, run, tell, version, versions, write_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the installer is for Linux and macOS")


def test_a_newer_program_takes_the_place_and_the_one_before_stays(stick: Path) -> None:
    for number, there in (("1.0", {"1.0"}), ("1.2", {"1.0", "1.2"}), ("1.10", {"1.2", "1.10"})):
        newer(stick, number)
        for _ in range(2):
            assert run(stick).returncode == 0
            assert (version(stick), versions(stick)) == (number, there)


def test_an_older_program_only_if_it_is_wanted(stick: Path) -> None:
    newer(stick, "1.10")
    assert run(stick).returncode == 0
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


def test_ctrl_c_changes_nothing(stick: Path) -> None:
    assert run(stick).returncode == 0
    newer(stick, "2.0", doctor="os.kill(os.getppid(), signal.SIGINT); signal.pause()")
    assert "interrupted; the same command goes on" in refused(stick, code=130)
    assert (version(stick), versions(stick)) == ("1.0", {"1.0"})


def test_a_library_of_the_system_that_is_missing_is_named(stick: Path) -> None:
    write_program(stick / "wheels", doctor="sys.exit(1)")
    wheel = stick / "wheels" / "capt_local-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        text = "raise RuntimeError('libgomp.so.1: cannot open shared object file: No such file')"
        archive.writestr("llama_cpp.py", text)
    tell(stick)
    assert "libgomp.so.1 is missing. Install the package" in refused(stick)
    assert not list((stick.parent / "home").iterdir())


def test_a_bundle_that_is_not_taken_in(stick: Path) -> None:
    write_program(stick / "wheels", importing="sys.exit('error: it is older')")
    tell(stick)
    line = refused(stick, code=3)
    assert line.endswith("The program is installed, the bundle is not: error: it is older")
    assert version(stick) == "1.0"
    assert "trust" not in (stick.parent / "log").read_text()


def test_what_the_import_remarks_is_told(stick: Path) -> None:
    remark = "print('note: the review is due', file=sys.stderr)"
    write_program(stick / "wheels", importing=remark)
    tell(stick)
    result = run(stick)
    assert (result.returncode, result.stderr) == (0, "note: the review is due\n")
