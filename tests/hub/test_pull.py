"""A pull from beginning to end: what is asked, what lies in the store, how it goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from capt_local.bundle import staging, store, verify
from capt_local.bundle.manifest import Bundle
from capt_local.bundle.manifest_file import read_bundle
from capt_local.errors import ModelError
from capt_local.hub import plan as hub
from capt_local.hub.choice import Known
from capt_local.hub.recipe import find_recipe
from tests.bundle.travelling import installed
from tests.hub.mirror import Mirror, cut_at, sends, sha256
from tests.hub.pulls import COMMITS, SIZES, Puller, content, name, write_recipe


def test_three_files_become_a_bundle(mirror: Mirror, recipe_file: Path) -> None:
    looked: list[str] = []
    puller = Puller(mirror)
    found = puller.pull(recipe_file, lambda bundle: looked.append(bundle.id))
    assert (found.fresh, found.resumed, looked, puller.waits) == (True, 0, ["trio"], [])
    bundle = store.find("trio")
    verify.verify(bundle)
    for role, model in bundle.models.items():
        assert model.path.read_bytes() == content(role)
        assert model.source == f"hub:{name(role)}@{COMMITS[role]}/{role}.Q4_K_M.gguf"
        assert (model.sha256, model.licence) == (sha256(content(role)), "apache-2.0")
        assert model.path.stat().st_mode & 0o777 == 0o600
    assert bundle.signer is None
    assert bundle.card["foundation_models"].startswith("target: target of a maker; expert:")
    # Nothing else is left than the bundle and the lock of the store.
    above = store.user_folder().parent
    left = {p.name for p in above.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert left == {"bundle.toml", "target.gguf", "expert.gguf", "base.gguf"}


def test_only_what_is_needed_is_asked_for_and_nothing_is_told(
    mirror: Mirror, recipe_file: Path
) -> None:
    Puller(mirror).pull(recipe_file)
    api = [f"/api/models/{name(role)}/revision/main?blobs=true" for role in SIZES]
    files = [f"/{name(r)}/resolve/{COMMITS[r]}/{r}.Q4_K_M.gguf" for r in SIZES]
    assert [seen.path for seen in mirror.seen] == api + files
    for seen in mirror.seen:
        known = {"host", "user-agent", "accept", "accept-encoding", "connection"}
        assert set(seen.headers) <= known
        assert seen.headers["user-agent"].startswith("capt-local/")
        assert seen.headers["accept-encoding"] == "identity"


def test_what_is_not_pinned_is_said_loudly_and_pinned(mirror: Mirror, recipe_file: Path) -> None:
    planned = Puller(mirror).plan(recipe_file)
    assert len([note for note in planned.notes if note.startswith("FIRST USE")]) == 3
    assert {each.known for each in planned.chosen.values()} == {Known.FIRST_USE}


def test_a_pinned_recipe_is_told_of_no_first_use(mirror: Mirror, tmp_path: Path) -> None:
    pins = {
        role: f'revision = "{COMMITS[role]}"\nsha256 = "{sha256(content(role))}"' for role in SIZES
    }
    planned = Puller(mirror).plan(write_recipe(tmp_path / "pinned.toml", **pins))
    assert planned.notes == ()
    assert {each.known for each in planned.chosen.values()} == {Known.PINNED}
    assert f"/revision/{COMMITS['target']}?" in mirror.seen[0].path


def test_the_first_use_holds_when_the_branch_moves(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror, tries=1)
    mirror.order("resolve", cut_at(1_000_000))
    with pytest.raises(ModelError, match="What is there is kept"):
        puller.pull(recipe_file)
    # The branch has another commit now; the mirror still has the old one.
    moved = mirror.repositories[name("target")]
    listing = moved.described(name("target"))
    mirror.order("/revision/main", sends(b"never asked"))
    planned = puller.plan(recipe_file)
    assert listing["sha"] == COMMITS["target"]
    assert {each.known for each in planned.chosen.values()} == {Known.EARLIER}
    assert planned.notes == ()


def test_a_file_that_changes_after_the_first_use_is_refused(
    mirror: Mirror, recipe_file: Path
) -> None:
    puller = Puller(mirror, tries=1)
    mirror.order("resolve", cut_at(1_000_000))
    with pytest.raises(ModelError):
        puller.pull(recipe_file)
    repository = mirror.repositories[name("target")]
    repository.files["target.Q4_K_M.gguf"] = content("target")[:-1] + b"!"
    with pytest.raises(ModelError, match="is another file now: its SHA-256 is pinned"):
        puller.pull(recipe_file)
    assert installed() == {}


def test_after_a_cut_it_goes_on_by_itself(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror)
    mirror.order("target.Q4", cut_at(1_200_000), cut_at(2_500_000))
    puller.pull(recipe_file)
    ranges = [seen.range for seen in mirror.fetches() if "target" in seen.path]
    assert ranges == [None, "bytes=1200000-", "bytes=2500000-"]
    assert len(puller.said) == 2 and all("cut" in text for text in puller.said)
    assert puller.waits == [1.0, 1.0]  # what came between counts as a new beginning
    verify.verify(store.find("trio"))


def test_after_an_end_the_same_command_goes_on(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("target.Q4", cut_at(2_000_000))
    with pytest.raises(ModelError, match="What is there is kept"):
        Puller(mirror, tries=1).pull(recipe_file)
    assert installed() == {}
    found = Puller(mirror).pull(recipe_file)
    assert found.resumed == 2_000_000
    ranges = [seen.range for seen in mirror.fetches() if "target" in seen.path]
    assert ranges == [None, "bytes=2000000-"]
    verify.verify(store.find("trio"))


def test_what_was_there_is_read_again_and_not_trusted(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("target.Q4", cut_at(2_000_000))
    with pytest.raises(ModelError):
        Puller(mirror, tries=1).pull(recipe_file)
    part = store.user_folder().parent / "incoming" / "trio" / "target.gguf"
    with part.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"!")
    with pytest.raises(ModelError, match="its SHA-256 differs"):
        Puller(mirror).pull(recipe_file)
    assert installed() == {}
    Puller(mirror).pull(recipe_file)
    verify.verify(store.find("trio"))


def test_a_hub_that_cannot_begin_in_the_middle(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror)
    whole = content("target")
    mirror.order("target.Q4", cut_at(2_000_000), sends(whole))
    puller.pull(recipe_file)
    assert any("begins anew" in text for text in puller.said)
    verify.verify(store.find("trio"))


def test_what_is_whole_is_not_asked_for_again(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("expert.Q4", cut_at(100))
    with pytest.raises(ModelError):
        Puller(mirror, tries=1).pull(recipe_file)
    before = len(mirror.fetches())
    Puller(mirror).pull(recipe_file)
    paths = [seen.path.rsplit("/", 1)[1] for seen in mirror.fetches()[before:]]
    assert paths == ["expert.Q4_K_M.gguf", "base.Q4_K_M.gguf"]


def test_an_interruption_keeps_what_is_there(
    mirror: Mirror, recipe_file: Path, tmp_path: Path
) -> None:
    def stop(label: str, part: float) -> None:
        if part > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Puller(mirror).pull(recipe_file, report=stop)
    assert installed() == {}
    found = Puller(mirror).pull(recipe_file)
    assert found.resumed >= 1_500_000


def test_models_that_are_refused_are_not_installed(mirror: Mirror, recipe_file: Path) -> None:
    def refuse(bundle: Bundle) -> None:
        raise ModelError("a weight is no number")

    with pytest.raises(ModelError, match="no number"):
        Puller(mirror).pull(recipe_file, refuse)
    assert installed() == {}


def test_an_installed_bundle_is_what_the_recipe_asks_for(mirror: Mirror, recipe_file: Path) -> None:
    Puller(mirror).pull(recipe_file)
    here, recipe = hub.installed("trio"), find_recipe(str(recipe_file))
    assert here is not None and hub.fulfils(here, recipe)
    assert not hub.fulfils(here, recipe.pinned({"target": "d" * 40}, {}))
    assert not hub.fulfils(here, recipe.pinned({}, {"base": "0" * 64}))
    newer = write_recipe(recipe_file).read_text().replace('version = "1"', 'version = "2"')
    recipe_file.write_text(newer)
    assert not hub.fulfils(here, find_recipe(str(recipe_file)))


def test_another_revision_takes_no_place_by_itself(mirror: Mirror, recipe_file: Path) -> None:
    Puller(mirror).pull(recipe_file)
    before = installed()
    repository = mirror.repositories[name("base")]
    repository.commit, repository.files = "e" * 40, {"base.Q4_K_M.gguf": b"GGUF new"}
    recipe = find_recipe(str(recipe_file)).pinned({"base": "e" * 40}, {})
    with pytest.raises(ModelError, match=r"which is not newer\. --allow-older"):
        Puller(mirror).pull(recipe)
    assert installed() == before
    Puller(mirror).pull(recipe, older=True)
    assert (store.user_folder() / "trio" / "base.gguf").read_bytes() == b"GGUF new"


def test_parts_of_another_try_go_and_that_is_said(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("expert.Q4", cut_at(100))
    with pytest.raises(ModelError):
        Puller(mirror, tries=1).pull(recipe_file)
    repository = mirror.repositories[name("base")]
    repository.commit = "e" * 40
    puller = Puller(mirror)
    found = puller.pull(find_recipe(str(recipe_file)).pinned({"base": "e" * 40}, {}))
    assert found.resumed == 0
    assert any("of other files, and goes" in text for text in puller.said)


def test_models_that_share_a_file_fetch_it_once(mirror: Mirror, tmp_path: Path) -> None:
    text = write_recipe(tmp_path / "two.toml").read_text()
    second = text[text.index("[models.expert]") :].replace("models.expert", "models.expert-2")
    second = second.replace("models.base", "models.base-2").replace("expert-GGUF", "other-GGUF")
    (tmp_path / "two.toml").write_text(f"{text}\n{second}")
    other = mirror.repositories[name("expert")]
    other = type(other)({"o.Q4_K_M.gguf": b"GGUF other"}, "f" * 40)
    mirror.repositories["maker/other-GGUF"] = other
    Puller(mirror).pull(tmp_path / "two.toml")
    assert len([seen for seen in mirror.fetches() if "base" in seen.path]) == 1
    bundle = store.find("trio")
    assert bundle.models["base"].path == bundle.models["base-2"].path


def test_a_full_disk_is_told_before_anything_is_fetched(
    mirror: Mirror, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="not enough room"):
        Puller(mirror).pull(recipe_file)
    assert mirror.fetches() == [] and installed() == {}


def test_a_disk_that_fills_up_keeps_what_is_there(
    mirror: Mirror, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staging.Staging.part

    class Full:
        def __init__(self, stream: object) -> None:
            self._stream, self._left = stream, 1_000_000

        def __getattr__(self, name: str) -> object:
            return getattr(self._stream, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> int:
            self._left -= len(data)
            if self._left < 0:
                raise OSError(28, os.strerror(28))
            return self._stream.write(data)  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(
        staging.Staging, "part", lambda self, name, size: Full(real(self, name, size))
    )
    with pytest.raises(ModelError, match="No space left"):
        Puller(mirror).pull(recipe_file)
    assert installed() == {}
    monkeypatch.setattr(staging.Staging, "part", real)
    assert Puller(mirror).pull(recipe_file).resumed > 0
    read_bundle(store.user_folder() / "trio")
