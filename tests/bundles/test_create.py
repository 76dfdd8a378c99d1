"""The files of a bundle that is made: linked or copied, whole or not at all. No model is real."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from capt_local.bundles import store
from capt_local.bundles.create import Put, describe, ingredients, put_together, write_manifest
from capt_local.bundles.manifest import MANIFEST, AdapterFile, Bundle
from capt_local.bundles.staging import free_place, new_staging
from capt_local.errors import ModelError


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


def of(files: dict[str, Path], adapters: tuple[AdapterFile, ...] = ()) -> Bundle:
    experts = () if adapters else (str(files["expert"]),)
    return ingredients(str(files["target"]), experts, (str(files["base"]),), adapters)


def put(files: dict[str, Path], folder: Path, **how: object) -> Put:
    return put_together(of(files), folder, **how)  # type: ignore[arg-type]


def test_files_of_this_user_are_linked(files: dict[str, Path], folder: Path) -> None:
    found = put(files, folder)
    assert found.linked == ("base.gguf", "expert.gguf", "target.gguf") and found.copied == ()
    for role, model in found.bundle.models.items():
        assert model.path == folder / f"{role}.gguf"
        assert os.path.samefile(model.path, files[role])
        assert describe(role, model.path).sha256 == model.sha256
        assert files[role].exists()
    found.check()


def test_copies_where_that_is_asked_for(files: dict[str, Path], folder: Path) -> None:
    told: dict[str, float] = {}
    found = put(files, folder, copy=True, report=told.__setitem__)
    assert found.linked == () and len(found.copied) == 3
    for role, model in found.bundle.models.items():
        assert not os.path.samefile(model.path, files[role])
        assert model.path.read_bytes() == files[role].read_bytes()
        assert model.path.stat().st_mode & 0o777 == 0o600
        assert describe(role, model.path).sha256 == model.sha256
    assert told == {"target.gguf": 1.0, "expert.gguf": 1.0, "base.gguf": 1.0}


def test_what_others_may_write_is_copied(files: dict[str, Path], folder: Path) -> None:
    files["expert"].chmod(0o664)
    found = put(files, folder)
    assert (found.copied, found.linked) == (("expert.gguf",), ("base.gguf", "target.gguf"))


def test_what_another_account_owns_is_copied(
    files: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    for path in files.values():
        try:
            os.chown(path, 4322, -1)
        except PermissionError:
            pytest.skip("files can be given away by root alone")
    assert put(files, folder).linked == ()


def test_an_expert_that_is_its_base_with_an_adapter(files: dict[str, Path], folder: Path) -> None:
    adapter = AdapterFile.given(files["lora"], 0.5)
    found = put_together(of(files, (adapter,)), folder)
    models = found.bundle.models
    assert models["expert"].path == models["base"].path == folder / "base.gguf"
    assert models["base"].adapter is None and models["expert"].adapter is not None
    assert models["expert"].adapter.path == folder / "expert-adapter.gguf"
    assert models["expert"].adapter.scale == 0.5
    assert sorted(os.listdir(folder)) == ["base.gguf", "expert-adapter.gguf", "target.gguf"]
    write_manifest(found.bundle, folder)


def test_a_file_that_changes_while_it_is_read(files: dict[str, Path], folder: Path) -> None:
    def spoil(name: str, _: float) -> None:
        if name == "expert.gguf":
            with files["expert"].open("ab") as stream:
                stream.write(b"more")

    for copy in (False, True):
        with pytest.raises(ModelError, match="changed while it was looked at"):
            put(files, folder, copy=copy, report=spoil)
        shutil.rmtree(folder)
        folder.mkdir()


def test_a_file_that_changes_before_the_manifest_is_written(
    files: dict[str, Path], folder: Path
) -> None:
    found = put(files, folder)
    files["base"].write_bytes(files["base"].read_bytes())
    with pytest.raises(ModelError, match=r"base\.gguf changed while it was looked at"):
        found.check()


def test_a_model_of_a_bundle_has_to_be_the_one_that_it_names(
    files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    place = other_bundle(tmp_path, files["base"])
    wanted = ingredients(str(files["target"]), (str(files["expert"]),), (f"{place}:target",), ())
    assert wanted.models["base"].licence == "CC0"
    assert put_together(wanted, folder).bundle.models["base"].licence == "CC0"
    shutil.rmtree(folder)
    folder.mkdir()
    data = bytearray((place / "target.gguf").read_bytes())
    data[-1] ^= 1
    (place / "target.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"The base model target\.gguf is not the file that its"):
        put_together(wanted, folder)


def other_bundle(tmp_path: Path, file: Path) -> Path:
    place = tmp_path / "other"
    place.mkdir()
    shutil.copy(file, place / "target.gguf")
    model = describe("target", place / "target.gguf", licence="CC0")
    write_manifest(Bundle(id="other", models={"target": model}), place)
    return place


def test_an_expert_that_is_its_own_base(files: dict[str, Path], tmp_path: Path) -> None:
    target, expert = str(files["target"]), str(files["expert"])
    link = tmp_path / "link"
    link.symlink_to(files["expert"])
    twin = tmp_path / "twin"
    os.link(files["expert"], twin)
    for base in (expert, str(link), str(twin)):
        with pytest.raises(ModelError, match="the base are the same file, so nothing would be"):
            ingredients(target, (expert,), (base,), ())
    silent = AdapterFile.given(files["lora"], 0.0)
    with pytest.raises(ModelError, match="same file and an adapter with the scale 0"):
        ingredients(target, (), (expert,), (silent,))


# --- places


def named(name: str) -> Bundle:
    return Bundle(id=name, models={})


def test_a_bundle_is_replaced_when_that_is_asked_for(
    files: dict[str, Path], tmp_path: Path
) -> None:
    place = other_bundle(tmp_path, files["base"])
    with pytest.raises(ModelError, match="The bundle other is there already"):
        free_place(named("x"), place, replaced=False)
    assert free_place(named("x"), place, replaced=True) == place
    (place / MANIFEST).write_text("broken")
    with pytest.raises(ModelError, match="A broken bundle is there already"):
        free_place(named("x"), place, replaced=False)
    with new_staging(place, in_store=False) as staging:
        (staging.folder / "new").write_bytes(b"1")
        staging.install()
    assert os.listdir(place) == ["new"]
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


@pytest.mark.parametrize("in_store", [True, False])
def test_nothing_is_left_of_what_failed(in_store: bool, tmp_path: Path) -> None:
    place = store.user_folder() / "new" if in_store else tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), new_staging(place, in_store=in_store) as staging:
        (staging.folder / "part").write_bytes(b"1")
        raise KeyboardInterrupt
    assert not place.exists() and not staging.folder.exists()
    assert [each for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_what_a_killed_try_left_goes(tmp_path: Path) -> None:
    place = store.user_folder() / "new"
    left = store.user_folder().parent / "incoming" / "new"
    left.mkdir(parents=True)
    (left / "target.gguf").write_bytes(b"half")
    with new_staging(place, in_store=True) as staging:
        assert staging.folder == left and os.listdir(left) == []
        assert left.stat().st_mode & 0o777 == 0o700
