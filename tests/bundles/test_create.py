"""The files of a bundle that is made: linked or copied, whole or not at all. No model is real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capt_local.bundles.install import put_together
from capt_local.bundles.manifest import Bundle
from capt_local.errors import ModelError
from tests.bundle_files import describe


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "odd names, \u00e4 \u2028"
    folder.mkdir()
    found = {role: folder / f"{role} of mine.bin" for role in ("target", "expert", "base", "lora")}
    for role, path in found.items():
        path.write_bytes(f"GGUF of the {role}".encode() * 100)
        path.chmod(0o644)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir(mode=0o700)
    return made


def of(files: dict[str, Path]) -> Bundle:
    return Bundle.from_paths(files["target"], files["expert"], files["base"])


def test_files_of_this_user_are_linked(files: dict[str, Path], folder: Path) -> None:
    made, linked = put_together(of(files), folder)
    assert linked == ["base.gguf", "expert.gguf", "target.gguf"]
    for role, model in made.models.items():
        assert model.path == folder / f"{role}.gguf"
        assert os.path.samefile(model.path, files[role])
        assert describe(role, model.path).sha256 == model.sha256


def test_what_others_may_write_is_copied(files: dict[str, Path], folder: Path) -> None:
    files["expert"].chmod(0o664)
    told: dict[str, float] = {}
    made, linked = put_together(of(files), folder, told.__setitem__)
    assert linked == ["base.gguf", "target.gguf"]
    copy = made.models["expert"]
    assert copy.path.read_bytes() == files["expert"].read_bytes()
    assert copy.path.stat().st_mode & 0o777 == 0o600
    assert describe("expert", copy.path).sha256 == copy.sha256
    assert told == {"target.gguf": 1.0, "expert.gguf": 1.0, "base.gguf": 1.0}


@pytest.mark.parametrize("mode", [0o644, 0o664])
def test_a_file_that_changes_while_it_is_read(
    mode: int, files: dict[str, Path], folder: Path
) -> None:
    files["expert"].chmod(mode)

    def spoil(name: str, _: float) -> None:
        if name == "expert.gguf":
            with files["expert"].open("ab") as stream:
                stream.write(b"more")

    with pytest.raises(ModelError, match="changed while it was looked at"):
        put_together(of(files), folder, spoil)
