"""Export and import: whole or not at all, signed, never back, resumed after a pulled stick."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles import staging, store, transfer
from capt_local.bundles.archive import members
from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.sign import read_private
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError, UsageError
from tests.bundles.travelling import (
    FILES,
    SIZES,
    TEMPLATE,
    Hands,
    Pulled,
    everything,
    installed,
    make_bundle,
)

KINDS = ["trio.capt", "trio-folder"]


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands.at(tmp_path / "hands")


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back(name: str, hands: Hands) -> None:
    seen: list[str] = []
    found = hands.take(hands.export(name), report=lambda file, _: seen.append(file))
    assert (found.fresh, found.resumed) == (True, 0)
    assert found.bundle.signer == Signer(hands.trusted.fingerprint, "hands")
    folder = store.user_folder() / "trio"
    assert sorted(os.listdir(folder)) == FILES
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    verify(store.find("trio"))
    assert set(seen) == set(FILES) - {MANIFEST, RECEIPT, SIGNATURE}
    assert os.listdir(store.user_folder().parent / "incoming") == ["trio.lock"]


def test_any_program_reads_the_archive(hands: Hands) -> None:
    with tarfile.open(hands.export("trio.capt")) as archive:
        assert archive.getnames() == [
            MANIFEST, SIGNATURE, "target.gguf", "chat.jinja", "expert.gguf", "base.gguf"
        ]  # fmt: skip
        assert {member.mode for member in archive} == {0o600}


def test_the_same_bundle_gives_the_same_archive(hands: Hands) -> None:
    one = hands.export("a.capt")
    bundle = read_bundle(hands.folder / "a.capt-from")
    again = transfer.export(bundle, hands.folder / "b.capt", read_private(hands.key))
    assert one.read_bytes() == again.read_bytes()


def test_what_is_installed_keeps_its_signature(hands: Hands, tmp_path: Path) -> None:
    first = hands.export("trio.capt")
    hands.take(first)
    again = transfer.export(store.find("trio"), tmp_path / "again.capt")
    assert again.read_bytes() == first.read_bytes()


def test_the_same_bundle_again_changes_nothing(hands: Hands) -> None:
    archive = hands.export("trio.capt")
    hands.take(archive)
    before = (store.user_folder() / "trio").stat().st_ino
    assert hands.take(archive).fresh is False
    assert (store.user_folder() / "trio").stat().st_ino == before
    (store.user_folder() / "trio" / "base.gguf").write_bytes(b"x" * SIZES["base"])
    with pytest.raises(ModelError, match="SHA-256 differs"):
        hands.take(archive)


def test_never_back_to_an_older_version(hands: Hands) -> None:
    old, new = hands.export("old.capt", "1.9"), hands.export("new.capt", "1.10")
    hands.take(old)
    assert hands.take(new).bundle.version == "1.10"
    before = installed()
    with pytest.raises(ModelError, match=r"version 1\.10; this one has 1\.9, which is not newer"):
        hands.take(old)
    assert installed() == before
    assert hands.take(old, older=True).bundle.version == "1.9"


@pytest.mark.parametrize(("here", "there"), [("2", "2.0"), ("2", "new"), ("", "1"), ("old", "1")])
def test_a_version_that_is_not_newer_for_sure_is_refused(
    here: str, there: str, hands: Hands
) -> None:
    hands.take(hands.export("a.capt", here))
    with pytest.raises(ModelError, match="--allow-older takes it"):
        hands.take(hands.export("b.capt", there))
    hands.take(hands.folder / "b.capt", older=True)
    assert store.find("trio").version == there


def test_no_signature(hands: Hands) -> None:
    for name in KINDS:
        path = hands.export(name, signed=False)
        with pytest.raises(ModelError, match="The bundle is not signed"):
            hands.take(path)
        assert installed() == {}
    assert hands.take(path, unsigned=True).bundle.signer is None
    assert sorted(os.listdir(store.user_folder() / "trio")) == [
        name for name in FILES if name not in (RECEIPT, SIGNATURE)
    ]


def test_a_key_that_nobody_trusts(hands: Hands, tmp_path: Path) -> None:
    archive = Hands.at(tmp_path / "others").export("trio.capt")
    for unsigned in (False, True):  # a wrong signature is worse than none
        with pytest.raises(ModelError, match="signed with a key that is not trusted here"):
            hands.take(archive, unsigned=unsigned)
    assert installed() == {}


def test_models_that_are_refused_are_not_installed(hands: Hands) -> None:
    def refuse(bundle: Bundle) -> None:
        assert bundle.folder is not None and bundle.folder.parent.name == "incoming"
        raise ModelError("no good")

    with pytest.raises(ModelError, match="no good"):
        hands.take(hands.export("trio.capt"), examine=refuse)
    assert installed() == {}


WHOLE = sum(SIZES.values()) + len(TEMPLATE)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("at", [0, 1, 40_000, 70_000, 71_000, WHOLE])
def test_a_stick_that_is_pulled(
    name: str, at: int, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading fails behind so many bytes of the models; the same command goes on from there."""
    path = hands.export(name)
    monkeypatch.setattr(transfer, "CHUNK", 1_000)
    stick = Pulled(monkeypatch)
    with pytest.raises(ModelError, match=r"cannot be read any more: .* to go on") as caught:
        hands.take(path, report=stick.pull_at(at))
    assert "\n" not in str(caught.value)
    assert installed() == {}
    stick.out = False
    found = hands.take(path)
    assert (found.fresh, found.resumed) == (True, sum(stick.copied.values()))
    assert at <= found.resumed < at + 1_000
    verify(store.find("trio"))


def a_link_to_a_bundle(place: Path, outside: Path) -> None:
    make_bundle(outside / "trio")
    place.symlink_to(outside / "trio")


def a_link_to_nothing(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "none")


def a_folder_of_notes(place: Path, outside: Path) -> None:
    place.mkdir()
    (place / "note").write_text("mine")


@pytest.mark.parametrize("plant", [a_link_to_a_bundle, a_link_to_nothing, a_folder_of_notes])
def test_what_is_no_bundle_is_not_replaced(
    plant: Callable[[Path, Path], None], hands: Hands, tmp_path: Path
) -> None:
    path, place = hands.export("trio.capt"), store.user_folder() / "trio"
    place.parent.mkdir(parents=True)
    plant(place, tmp_path / "outside")
    before = everything(tmp_path)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"trio is there already, and is no bundle"):
            hands.take(path, report=lambda *_: pytest.fail("something was copied"))
    assert everything(tmp_path) == before
    place.rename(place.with_name("moved"))
    assert hands.take(path).fresh


def test_what_comes_into_the_place_meanwhile_stays(hands: Hands) -> None:
    place = store.user_folder() / "trio"
    with pytest.raises(ModelError, match="is no bundle"):
        hands.take(hands.export("trio.capt"), examine=lambda _: place.mkdir())
    assert place.is_dir() and os.listdir(place) == []


def test_what_is_left_of_another_version_is_not_gone_on_with(hands: Hands) -> None:
    def stop(file: str, _: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hands.take(hands.export("one.capt", "1"), report=stop)
    assert hands.take(hands.export("two.capt", "2")).resumed == 0
    verify(store.find("trio"))


def test_what_is_left_and_was_changed_is_found(hands: Hands) -> None:
    path = hands.export("trio.capt")

    def stop(file: str, _: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hands.take(path, report=stop)
    part = store.user_folder().parent / "incoming" / "trio" / "target.gguf"
    part.write_bytes(b"x" * 1_000)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        hands.take(path)
    assert not part.exists()
    assert hands.take(path).fresh


def plant_link(part: Path, outside: Path) -> None:
    part.symlink_to(outside)


def plant_hard_link(part: Path, outside: Path) -> None:
    os.link(outside, part)


def plant_pipe(part: Path, outside: Path) -> None:
    os.mkfifo(part)


@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_pipe])
def test_nothing_is_written_through_what_lies_there(
    plant: object, hands: Hands, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = store.user_folder().parent / "incoming" / "trio"
    folder.mkdir(parents=True)
    path = hands.export("trio.capt")
    source = hands.folder / "trio.capt-from"
    shutil.copy(source / MANIFEST, folder)
    with tarfile.open(path) as archive:
        (folder / SIGNATURE).write_bytes(archive.extractfile(SIGNATURE).read())  # type: ignore[union-attr]
    plant(folder / "target.gguf", outside)  # type: ignore[operator]
    hands.take(path)
    assert outside.read_text() == "mine"
    assert stat.S_ISREG(os.lstat(store.user_folder() / "trio" / "target.gguf").st_mode)


def test_a_disk_that_is_too_small_is_told_first(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hands.export("trio.capt")
    usage = shutil.disk_usage(hands.folder)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage._replace(free=5_000))
    with pytest.raises(ModelError, match=r"not enough room .* Nothing was copied"):
        hands.take(path)
    with pytest.raises(ModelError, match=r"not enough room"):
        hands.export("more.capt")
    assert installed() == {}
    assert not list(hands.folder.glob("more.capt*.part"))


def test_a_disk_that_fills_up(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hands.export("trio.capt")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written: No space left"):
        hands.take(path)
    assert installed() == {}


def test_two_imports_at_once(hands: Hands) -> None:
    path = hands.export("trio.capt")

    def again(_: Bundle) -> None:
        hands.take(path)

    with pytest.raises(ModelError, match="trio is being imported already"):
        hands.take(path, examine=again)


@pytest.mark.parametrize("move", [1, 2])
def test_a_power_cut_between_two_moves(
    move: int, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old bundle or the new one is there behind the next import, never none or a mixture."""
    hands.take(hands.export("one.capt", "1"))
    rename, count = os.rename, [0]

    def cut(old: Path, new: Path) -> None:
        count[0] += 1
        if count[0] == move:
            raise KeyboardInterrupt
        rename(old, new)

    path = hands.export("two.capt", "2")
    monkeypatch.setattr(staging.os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        hands.take(path)
    monkeypatch.setattr(staging.os, "rename", rename)
    other = hands.export("three.capt", "3")
    with pytest.raises(ModelError, match="no good"):
        hands.take(other, examine=lambda _: (_ for _ in ()).throw(ModelError("no good")))
    assert store.find("trio").version == "1"
    verify(store.find("trio"))
    assert hands.take(path).bundle.version == "2"


def test_exports_are_held_against_the_manifest(hands: Hands) -> None:
    bundle = make_bundle(hands.folder / "from")
    bundle.models["base"].path.write_bytes(b"x" * SIZES["base"])
    for name in KINDS:
        with pytest.raises(ModelError, match=r"base\.gguf is not the file that the bundle names"):
            transfer.export(bundle, hands.folder / name)
        assert not list(hands.folder.glob(f"{name}*"))


def test_an_export_overwrites_nothing(hands: Hands) -> None:
    path = hands.export("trio.capt")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        transfer.export(read_bundle(hands.folder / "trio.capt-from"), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", KINDS)
def test_an_export_leaves_drafts_of_others_alone(name: str, hands: Hands) -> None:
    (hands.folder / f"{name}.part").mkdir()
    (hands.folder / f"{name}.part" / "thesis.txt").write_text("mine")
    (hands.folder / "other.capt.part").write_text("mine too")
    before = everything(hands.folder)
    made = hands.export(name)
    hands.export("other.capt")
    after = everything(hands.folder)
    assert before.items() <= after.items()
    added = {Path(each).parts[0] for each in after.keys() - before.keys()}
    assert added == {name, f"{name}-from", "other.capt", "other.capt-from"}
    mode = made.stat().st_mode & 0o777
    assert mode == (0o600 if made.is_file() else 0o700)


@pytest.mark.parametrize("name", KINDS)
def test_what_comes_into_the_place_of_an_export_meanwhile_stays(name: str, hands: Hands) -> None:
    place = hands.folder / name
    bundle = make_bundle(hands.folder / "from")
    with pytest.raises(UsageError, match="is there already"):
        transfer.export(bundle, place, report=lambda *_: place.write_text("mine"))
    assert place.read_text() == "mine"
    assert not list(hands.folder.glob("*.part"))


def test_names_that_cannot_travel(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "from")
    for name in ("sub/x.gguf", "CON.gguf", "lpt1", "x.", ".x", "a b", "bundle.toml", "BUNDLE.SIG"):
        assert bundle.folder is not None
        base = replace(bundle.models["base"], path=bundle.folder / name)
        odd = replace(bundle, models={**bundle.models, "base": base})
        with pytest.raises(ModelError, match="has a name that cannot travel"):
            members(odd)
    with pytest.raises(ModelError, match="in two ways"):
        assert bundle.folder is not None
        base = replace(bundle.models["base"], path=bundle.folder / "EXPERT.gguf")
        members(replace(bundle, models={**bundle.models, "base": base}))


def test_a_folder_with_more_than_the_manifest_names(hands: Hands) -> None:
    folder = hands.export("trio")
    (folder / "more.gguf").write_text("x")
    with pytest.raises(ModelError, match="holds a file that the manifest does not name"):
        hands.take(folder)
    assert installed() == {}
    (folder / "more.gguf").rename(folder / "._junk")
    assert hands.take(folder).fresh


def test_a_link_in_a_folder_is_not_followed(hands: Hands, tmp_path: Path) -> None:
    folder = hands.export("trio")
    os.replace(folder / "base.gguf", tmp_path / "base.gguf")
    (folder / "base.gguf").symlink_to(tmp_path / "base.gguf")
    with pytest.raises(ModelError, match=r"base\.gguf cannot be read"):
        hands.take(folder)


def test_swapped_roles(hands: Hands) -> None:
    folder = hands.export("trio")
    os.rename(folder / "expert.gguf", folder / "x")
    os.rename(folder / "base.gguf", folder / "expert.gguf")
    os.rename(folder / "x", folder / "base.gguf")
    with pytest.raises(ModelError, match="which is not what the bundle says"):
        hands.take(folder)
