from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from capt_local.bundles import store, verify
from capt_local.bundles.install import Staging
from capt_local.bundles.manifest import MANIFEST
from capt_local.config import MODELS_VARIABLE
from capt_local.errors import ModelError
from capt_local.strict_json import make_private_folder, stamp_of
from tests.bundle_files import make_bundle


def make(folder: Path, name: str, title: str = "") -> Path:
    make_bundle(folder / name, {"target": b"GGUF" + title.encode()}, title=title)
    return folder / name


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make(tmp_path / "package", "demo", "packaged")
    monkeypatch.setattr(store, "packaged_folder", lambda: folder)
    return folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "user" / "models"
    monkeypatch.setattr(store, "user_folder", lambda: folder)
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    folders = [tmp_path / "site one", tmp_path / "site two"]
    monkeypatch.setenv(MODELS_VARIABLE, os.pathsep.join(map(str, folders)))
    return folders


def test_order_of_the_stores(packaged: Path, user: Path, site: list[Path]) -> None:
    for folder in (user, *site):
        make(folder, "demo", "other")
    assert store.find("demo").title == "packaged"
    make(user, "trio", "user")
    assert store.find("trio").title == "user"
    make(site[1], "trio", "second")
    assert store.find("trio").title == "second"
    make(site[0], "trio", "first")
    assert store.find("trio").title == "first"


@pytest.mark.parametrize("reference", ["", "a b", "x\x00y", "-m", "\x1b[2J", "x" * 5000, "none"])
def test_odd_and_unknown_ids_are_refused(packaged: Path, user: Path, reference: str) -> None:
    user.mkdir(parents=True)
    (user / MANIFEST).write_text("not for reading")
    with pytest.raises(ModelError, match="No bundle has the id") as caught:
        store.find(reference)
    told = str(caught.value)
    assert told.isprintable() and str(user) in told and MODELS_VARIABLE in told


def test_an_archive_is_to_be_imported(
    packaged: Path, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.capt").write_bytes(b"x")
    for reference in ("mine.capt", "./mine.capt", tmp_path / "mine.capt"):
        with pytest.raises(ModelError, match="models import"):
            store.find(reference)
    with pytest.raises(ModelError, match="No bundle has the id"):
        store.find("other.capt")


def test_all_bundles_once_each_and_broken_ones_are_told(
    packaged: Path, user: Path, site: list[Path]
) -> None:
    for name in "abcde":
        make(user, name, "user")
    make(site[0], "b", "site")
    (user / "not a bundle").mkdir()
    (user / "file").write_text("x")
    bundles, problems = store.available()
    found = [(bundle.id, bundle.title) for bundle in bundles]
    first = [("demo", "packaged"), ("b", "site"), ("a", "user")]
    assert found == [*first, ("c", "user"), ("d", "user"), ("e", "user")] and not problems
    (user / "c" / MANIFEST).write_text("broken")
    for file in (user / "d" / "target.gguf", user / "e" / MANIFEST):
        file.unlink()
        file.symlink_to(file.name)  # a link to itself
    bundles, problems = store.available()
    assert [bundle.id for bundle in bundles] == ["demo", "b", "a"]
    assert all(str(user / name) in str(each) for name, each in zip("cde", problems, strict=True))


def test_a_pipe_as_manifest_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "bundle.toml"
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match="it is not a file"):
        store.find(pipe)
    with pytest.raises(ModelError, match="holds no bundle"):
        store.find(tmp_path)


def test_folders_are_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b" / "c")
        Staging(store.user_folder() / "x").__exit__(None, None, None)
        monkeypatch.setattr(verify, "_SETTLED", 0)
        monkeypatch.setattr(verify, "state_folder", lambda: tmp_path / "d/e")
        (tmp_path / "file").touch(mode=0o600)
        cache = verify.DigestCache()
        cache.store(tmp_path / "file", stamp_of(os.stat(tmp_path / "file")), "0" * 64)
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c"]
    made += [tmp_path / "d", tmp_path / "d/e"]
    made += [store.user_folder(), store.user_folder().parent, store.staging_folder()]
    assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o700}
