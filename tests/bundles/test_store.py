from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundles import digest_cache, store
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle
from capt_local.bundles.staging import Staging
from capt_local.errors import ModelError
from capt_local.strict_json import make_private_folder, stamp_of


def make(folder: Path, name: str, title: str = "") -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "target.gguf").write_bytes(b"GGUF" + title.encode())
    models = {"target": describe("target", place / "target.gguf")}
    write_manifest(Bundle(id=name, title=title, models=models), place)  # type: ignore[arg-type]
    return place


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
    monkeypatch.setenv(store.VARIABLE, os.pathsep.join(map(str, folders)))
    return folders


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path, "mine")
    for reference in (place, str(place), str(place / MANIFEST)):
        assert store.find(reference).id == "mine"
    monkeypatch.chdir(tmp_path)
    assert store.find("./mine").id == "mine"
    assert store.find(Path("mine")).id == "mine"


def test_the_home_of_nobody_holds_nothing(
    packaged: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.VARIABLE, "~nobody-of-this-name/bundles")
    assert [bundle.id for bundle in store.available()] == ["demo"]
    with pytest.raises(ModelError, match="There is no bundle at ~nobody-of-this-name/trio"):
        store.find("~nobody-of-this-name/trio")


def test_the_demo_is_the_packaged_one(packaged: Path, user: Path, site: list[Path]) -> None:
    for folder in (user, *site):
        make(folder, "demo", "other")
    assert store.find("demo").title == "packaged"


def test_a_demo_elsewhere_is_found_where_none_is_packaged(
    tmp_path: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "packaged_folder", lambda: tmp_path / "none")
    make(user, "demo", "user's")
    assert store.find("demo").title == "user's"


def test_order_of_the_stores(packaged: Path, user: Path, site: list[Path]) -> None:
    make(user, "trio", "user")
    assert store.find("trio").title == "user"
    make(site[1], "trio", "second")
    assert store.find("trio").title == "second"
    make(site[0], "trio", "first")
    assert store.find("trio").title == "first"


def test_unknown_ids(
    packaged: Path, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="No bundle has the id 'trio'") as caught:
        store.find("trio")
    assert "write ./ in front" not in str(caught.value)
    make(tmp_path, "trio")
    with pytest.raises(ModelError, match=r"A folder of that name is here: write \./ in front"):
        store.find("trio")


@pytest.mark.parametrize("reference", ["", "a b", "x\x00y", "-m", "\x1b[2J", "x" * 5000])
def test_odd_ids_are_refused(packaged: Path, user: Path, reference: str) -> None:
    user.mkdir(parents=True)
    (user / MANIFEST).write_text("not for reading")
    with pytest.raises(ModelError, match="No bundle has the id") as caught:
        store.find(reference)
    assert str(caught.value).isprintable()


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no bundle at"):
        store.find(tmp_path / "none")
    with pytest.raises(ModelError, match=r"holds no bundle\.toml"):
        store.find(tmp_path)


def test_a_renamed_folder_is_not_another_bundle(packaged: Path, user: Path) -> None:
    make(user, "trio").rename(user / "other")
    with pytest.raises(ModelError, match="the id is 'trio', but the folder is 'other'"):
        store.find("other")


def test_all_bundles_once_each(packaged: Path, user: Path, site: list[Path]) -> None:
    make(user, "b", "user")
    make(user, "a", "user")
    make(site[0], "b", "site")
    (user / "not a bundle").mkdir()
    (user / "file").write_text("x")
    found = [(bundle.id, bundle.title) for bundle in store.available()]
    assert found == [("demo", "packaged"), ("b", "site"), ("a", "user")]


def test_broken_bundles_are_told(packaged: Path, user: Path) -> None:
    (make(user, "a") / MANIFEST).write_text("broken")
    make(user, "b")
    problems: list[ModelError] = []
    assert [bundle.id for bundle in store.available(problems.append)] == ["demo", "b"]
    assert len(problems) == 1
    assert "not valid TOML" in str(problems[0])
    with pytest.raises(ModelError, match="not valid TOML"):
        store.available()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_a_link_that_leads_to_itself_breaks_one_bundle(packaged: Path, user: Path) -> None:
    for name in ("a", "b", "c", "d"):
        make(user, name)
    for file in (user / "a" / "target.gguf", user / "b" / MANIFEST):
        file.unlink()
        file.symlink_to(file.name)
    (user / "e").symlink_to("e")
    problems: list[ModelError] = []
    assert [bundle.id for bundle in store.available(problems.append)] == ["demo", "c", "d"]
    assert [str(user / name) in str(each) for name, each in zip("abe", problems, strict=True)] == [
        True
    ] * 3


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_a_store_that_is_a_link_to_itself_holds_nothing(
    user: Path, site: list[Path], tmp_path: Path
) -> None:
    bundle = store.find(make(user, "a"))
    (tmp_path / "other").symlink_to(user)
    site[0].symlink_to(site[0].name)
    assert store.is_installed(bundle)
    assert store.is_installed(store.find(tmp_path / "other" / "a"))
    user.rename(tmp_path / "away")
    user.symlink_to(user.name)
    assert not store.is_installed(store.find(tmp_path / "away" / "a"))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Closes a folder, also to root."""
    shut: list[Path] = []
    real_stat, real_list = os.stat, os.listdir

    def stat(path: Any, **more: Any) -> os.stat_result:
        if isinstance(path, Path) and any(path.parent == each for each in shut):
            raise PermissionError(13, "Permission denied")
        return real_stat(path, **more)

    def listdir(path: Any = ".") -> list[str]:
        if any(Path(path) == each for each in shut):
            raise PermissionError(13, "Permission denied")
        return real_list(path)

    monkeypatch.setattr(store.os, "stat", stat)
    monkeypatch.setattr(store.os, "listdir", listdir)
    return shut.append


def test_a_folder_that_cannot_be_read_is_told(
    packaged: Path, user: Path, site: list[Path], closed: Callable[[Path], None]
) -> None:
    make(user, "b")
    closed(make(user, "a"))
    (user / "lost+found").mkdir()
    closed(user / "lost+found")  # as on each disk of its own: no bundle can be called so
    make(site[0], "c")
    closed(site[0])
    problems: list[ModelError] = []
    assert [bundle.id for bundle in store.available(problems.append)] == ["demo", "b"]
    assert [str(each) for each in problems] == [
        f"The folder {place} cannot be read: Permission denied." for place in (site[0], user / "a")
    ]
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        store.available()


def test_a_folder_in_a_bundle_that_cannot_be_read_breaks_this_one(
    packaged: Path, user: Path, closed: Callable[[Path], None]
) -> None:
    inner = make(user, "a") / "inner"
    inner.mkdir()
    (user / "a" / "target.gguf").rename(inner / "target.gguf")
    manifest = user / "a" / MANIFEST
    manifest.write_text(manifest.read_text().replace("target.gguf", "inner/target.gguf"))
    make(user, "b")
    assert [bundle.id for bundle in store.available()] == ["demo", "a", "b"]
    closed(inner)
    problems: list[ModelError] = []
    assert [bundle.id for bundle in store.available(problems.append)] == ["demo", "b"]
    (problem,) = problems
    assert str(problem).startswith(f"{manifest}: models.target.file ")


def test_a_bundle_that_cannot_be_read_is_one_line(
    packaged: Path, user: Path, closed: Callable[[Path], None]
) -> None:
    closed(make(user, "a"))
    for reference in ("a", user / "a"):
        with pytest.raises(ModelError, match=r"a cannot be read: Permission denied\.$"):
            store.find(reference)


def test_the_user_s_folder_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.user_folder().parts[-2:] == ("capt-local", "models")


def layout(root: Path, *, project: bool, beside: bool, inside: bool) -> Path:
    package = root / "capt_local"
    package.mkdir()
    if project:
        (root / "pyproject.toml").write_text("")
    for wanted, place in ((beside, root / "models"), (inside, package / "models")):
        if wanted:
            make(place, "demo")
    return package


@pytest.mark.parametrize(
    ("project", "beside", "inside", "expected"),
    [
        (True, True, False, "models/demo"),
        (False, True, True, "capt_local/models/demo"),
        (False, True, False, "capt_local/models/demo"),
        (True, False, True, "capt_local/models/demo"),
    ],
    ids=["editable", "installed", "another package's models", "built in place"],
)
def test_where_the_packaged_bundle_lies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    project: bool,
    beside: bool,
    inside: bool,
    expected: str,
) -> None:
    package = layout(tmp_path, project=project, beside=beside, inside=inside)
    monkeypatch.setattr(store.resources, "files", lambda name: package)
    assert store.packaged_folder() == tmp_path / expected


def test_an_unknown_bundle_is_told_what_there_is() -> None:
    with pytest.raises(ModelError) as caught:
        store.find("no-such-bundle")
    for way in (store.DEMO, MANIFEST, store.VARIABLE):
        assert way in str(caught.value)
    assert "models list" not in str(caught.value)


def test_a_path_that_is_too_long_is_no_bundle() -> None:
    with pytest.raises(ModelError, match="There is no bundle"):
        store.find("./" + "x" * 300)


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
        monkeypatch.setattr(digest_cache, "_SETTLED", 0)
        monkeypatch.setattr(digest_cache, "state_folder", lambda: tmp_path / "d/e")
        (tmp_path / "file").touch(mode=0o600)
        cache = digest_cache.DigestCache()
        cache.store(tmp_path / "file", stamp_of(os.stat(tmp_path / "file")), "0" * 64)
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c"]
    made += [tmp_path / "d", tmp_path / "d/e"]
    made += [store.user_folder(), store.user_folder().parent, store.staging_folder()]
    assert {stat.S_IMODE(each.stat().st_mode) for each in made} == {0o700}
