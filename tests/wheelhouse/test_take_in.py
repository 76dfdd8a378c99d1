"""What the installer trusts, and when; the program is played, so that this takes no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from capt_local.bundles.sign import new_key
from scripts.wheelhouse import install

ABOUT = {"key": "keys/maker.pub", "bundle": "bundle/tiny.capt"}


@dataclass
class Machine:
    """A stick and the machine that it is put into; notes which verbs were called."""

    folder: Path
    refuses: str = ""
    called: list[str] = field(default_factory=list)

    @property
    def keys(self) -> tuple[Path, Path]:
        return self.folder / "site", self.folder / "user"

    def call(self, command: Sequence[str]) -> CompletedProcess[str]:
        if "-c" in command:
            return CompletedProcess(command, 0, "\n".join(map(str, self.keys)), "")
        verb = command[2]
        self.called.append(f"{verb} --key" if "--key" in command else verb)
        failed = verb == self.refuses
        return CompletedProcess(command, 3 * failed, "tiny\n", "error: why\n" * failed)

    def take_in(self, *, compared: bool = False) -> list[str]:
        self.called.clear()
        install.take_in(self.folder / "stick", ABOUT, self.folder / "capt-local", compared)
        return self.called


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)
    for folder in (*found.keys, tmp_path / "stick" / "keys"):
        folder.mkdir(parents=True)
    new_key(tmp_path / "stick" / "keys" / "maker")
    monkeypatch.setattr(install, "call", found.call)
    return found


def test_the_key_of_a_bundle_that_is_refused_is_not_trusted(machine: Machine) -> None:
    machine.refuses = "import"
    with pytest.raises(install.Refused, match="the bundle is not: error: why"):
        machine.take_in()
    assert machine.called == ["import --key"]


@pytest.mark.parametrize("owner", [0, 1])
@pytest.mark.parametrize("data", [None, b"no key", b"\xff\xfe"])
def test_a_new_key_beside_others_has_to_be_compared(
    owner: int, data: bytes | None, machine: Machine
) -> None:
    if data is None:
        new_key(machine.keys[owner] / "other")
    else:
        (machine.keys[owner] / "other.pub").write_bytes(data)
    with pytest.raises(install.Refused, match="other keys are trusted here"):
        machine.take_in()
    assert machine.called == []
    assert machine.take_in(compared=True) == ["import --key", "trust"]
