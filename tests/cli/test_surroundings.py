"""What `doctor` finds around the program."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from capt_local.cli import doctor
from capt_local.cli.doctor import private_memory, swaps
from capt_local.llama import hardening


def test_swap_on_an_encrypted_device_or_in_memory_is_safe(tmp_path: Path) -> None:
    listing, block = tmp_path / "swaps", tmp_path / "block"
    (block / "dm-1" / "dm").mkdir(parents=True)
    (block / "dm-1" / "dm" / "uuid").write_text("CRYPT-PLAIN-swap")
    (block / "dm-2" / "dm").mkdir(parents=True)
    (block / "dm-2" / "dm" / "uuid").write_text("LVM-abc")
    names = ["/dev/dm-1", "/dev/dm-2", "/dev/zram0", "/nowhere/swapfile"]
    rows = [f"{name} partition 8388604 0 -2" for name in names]
    listing.write_text("\n".join(["Filename Type Size Used Priority", *rows]) + "\n")
    assert dict(swaps(listing, block)) == dict(zip(names, [True, False, True, False], strict=True))
    assert list(swaps(tmp_path / "none", block)) == []


@pytest.mark.parametrize(("safe", "warned"), [(True, False), (False, True)])
def test_plain_swap_is_a_warning(
    safe: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    total = type("Swap", (), {"total": 1 << 30})
    monkeypatch.setattr(psutil, "swap_memory", lambda: total)
    monkeypatch.setattr(doctor, "_SWAPS", tmp_path)
    monkeypatch.setattr(doctor, "swaps", lambda: iter([("/dev/sda2", safe)]))
    warnings: list[str] = []
    facts = private_memory(warnings)
    assert facts["swap"] == "1,024 MiB"
    assert any("/dev/sda2" in line for line in warnings) == warned


@pytest.mark.parametrize(("private_", "warned"), [(True, 0), (False, 1), (None, 0)])
def test_a_possible_core_dump_is_a_warning(
    private_: bool | None, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "memory_is_private", lambda: private_)
    monkeypatch.setattr(psutil, "swap_memory", lambda: type("Swap", (), {"total": 0}))
    warnings: list[str] = []
    assert private_memory(warnings)["swap"] == "none"
    assert len(warnings) == warned
