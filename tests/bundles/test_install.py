"""Export and import: whole or not at all, signed, never back."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles import archive, store, verify
from capt_local.bundles.archive import members
from capt_local.bundles.install import assemble, clear, leftovers
from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.bundles.sign import read_private
from capt_local.errors import ModelError, UsageError
from tests.bundle_files import describe
from tests.bundles.travelling import (
    FILES,
    SIZES,
    TEMPLATE,
    Hands,
    everything,
    installed,
    make_trio,
)


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands.at(tmp_path / "hands")


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_there_and_back(hands: Hands) -> None:
    path = hands.export("trio.capt")
    with tarfile.open(path) as tar:  # any program reads it
        names = [MANIFEST, SIGNATURE, "target.gguf", "chat.jinja", "expert.gguf", "base.gguf"]
        assert tar.getnames() == names and {member.mode for member in tar} == {0o600}
    seen: set[str] = set()
    bundle, fresh = hands.take(path, report=lambda file, _: seen.add(file))
    assert fresh and bundle.signer == Signer(hands.trusted.fingerprint, "hands")
    folder = store.user_folder() / "trio"
    assert sorted(os.listdir(folder)) == FILES
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    verify.verify(store.find("trio"))
    assert seen == set(FILES) - {MANIFEST, RECEIPT, SIGNATURE}
    assert os.listdir(store.staging_folder()) == ["trio.lock"]
    again = archive.export(store.find("trio"), hands.folder / "again.capt")
    assert again.read_bytes() == path.read_bytes()  # with the signature that it came with


def test_the_same_bundle_again_changes_nothing(hands: Hands) -> None:
    path = hands.export("trio.capt")
    hands.take(path)
    before = (store.user_folder() / "trio").stat().st_ino
    assert hands.take(path)[1] is False
    assert (store.user_folder() / "trio").stat().st_ino == before
    (store.user_folder() / "trio" / "base.gguf").write_bytes(b"x" * SIZES["base"])
    with pytest.raises(ModelError, match="SHA-256 differs"):
        hands.take(path)


@pytest.mark.parametrize("left", [3_000, 60_000, -1_000, -1])
def test_a_cut_archive_of_what_is_installed_is_not_whole(left: int, hands: Hands) -> None:
    path = hands.export("trio.capt")
    hands.take(path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ModelError, match="is damaged: it is cut off"):
        hands.take(path)


@pytest.mark.parametrize("data", [b"", b"a note\n", b"x" * 5_000, b"\x1f\x8b" + bytes(2_000)])
def test_what_is_no_archive_is_called_none(data: bytes, hands: Hands, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes(data)
    with pytest.raises(ModelError, match=r"note\.txt is no archive of a bundle"):
        hands.take(tmp_path / "note.txt")


def test_never_back_to_an_older_version(hands: Hands) -> None:
    old, new = hands.export("old.capt", "1.9"), hands.export("new.capt", "1.10")
    hands.take(old)
    assert hands.take(new)[0].version == "1.10"
    before = installed()
    with pytest.raises(ModelError, match=r"version 1\.10; this one has 1\.9, which is not newer"):
        hands.take(old)
    assert installed() == before
    assert hands.take(old, older=True)[0].version == "1.9"


@pytest.mark.parametrize(("here", "there"), [("2", "2.0"), ("2", "new"), ("", "1"), ("old", "1")])
def test_a_version_that_is_not_newer_for_sure_is_refused(
    here: str, there: str, hands: Hands
) -> None:
    hands.take(hands.export("a.capt", here))
    with pytest.raises(ModelError, match="--allow-older takes it"):
        hands.take(hands.export("b.capt", there))


def test_no_signature(hands: Hands) -> None:
    path = hands.export("trio.capt", signed=False)
    with pytest.raises(ModelError, match="The bundle is not signed"):
        hands.take(path)
    assert installed() == {}
    assert hands.take(path, unsigned=True)[0].signer is None
    assert not set(os.listdir(store.user_folder() / "trio")) & {RECEIPT, SIGNATURE}


def test_a_key_that_nobody_trusts(hands: Hands, tmp_path: Path) -> None:
    path = Hands.at(tmp_path / "others").export("trio.capt")
    for unsigned in (False, True):  # a wrong signature is worse than none
        with pytest.raises(ModelError, match="signed with a key that is not trusted here"):
            hands.take(path, unsigned=unsigned)
    assert installed() == {}


WHOLE = sum(SIZES.values()) + len(TEMPLATE)


class Stick(io.FileIO):
    """A file on a stick; once that is pulled, no byte comes."""

    out = False

    def read(self, count: int | None = -1) -> bytes:
        if Stick.out:
            raise OSError(5, "Input/output error")
        return super().read(count) or b""


@pytest.mark.parametrize("at", [0, 40_000, 71_000, WHOLE])
def test_a_stick_that_is_pulled(at: int, hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading fails behind so many bytes of the models."""
    path, copied = hands.export("trio.capt"), dict[str, float]()
    monkeypatch.setattr(verify, "_CHUNK", 1_000)
    monkeypatch.setattr(archive, "open_regular", lambda path, **_: Stick(path))
    monkeypatch.setattr(Stick, "out", at == 0)

    def pull(file: str, part: float) -> None:
        copied[file] = round(part * SIZES.get(file.removesuffix(".gguf"), len(TEMPLATE)))
        Stick.out = sum(copied.values()) >= at

    with pytest.raises(ModelError, match=r"cannot be read any more: .* Nothing was installed"):
        hands.take(path, report=pull)
    assert installed() == {} and leftovers() == {}
    Stick.out = False
    assert hands.take(path)[1]
    verify.verify(store.find("trio"))


def a_link_to_a_bundle(place: Path, outside: Path) -> None:
    make_trio(outside / "trio")
    place.symlink_to(outside / "trio")


def a_folder_of_notes(place: Path, outside: Path) -> None:
    place.mkdir()
    (place / "note").write_text("mine")


@pytest.mark.parametrize("plant", [a_link_to_a_bundle, a_folder_of_notes])
def test_what_is_no_bundle_is_not_replaced(
    plant: Callable[[Path, Path], None], hands: Hands, tmp_path: Path
) -> None:
    path, place = hands.export("trio.capt"), store.user_folder() / "trio"
    place.parent.mkdir(parents=True)
    plant(place, tmp_path / "outside")
    before = everything(place)
    with pytest.raises(ModelError, match=r"trio is there already, and is no bundle"):
        hands.take(path, report=lambda *_: pytest.fail("something was copied"))
    assert everything(place) == before
    place.rename(place.with_name("moved"))
    with pytest.raises(ModelError, match="is no bundle"):  # what comes there meanwhile, too
        hands.take(path, examine=lambda _: place.mkdir())
    assert os.listdir(place) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_nothing_is_written_through_what_lies_there(
    kind: str, hands: Hands, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target.gguf").write_text("mine")
    part = store.staging_folder() / "trio" / "target.gguf"
    part.parent.mkdir(parents=True)
    if kind == "folder":
        part.parent.rmdir()
        part.parent.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(part)
    elif kind == "link":
        part.symlink_to(outside / "target.gguf")
    else:
        os.link(outside / "target.gguf", part)
    hands.take(hands.export("trio.capt"))
    assert (outside / "target.gguf").read_text() == "mine"
    assert stat.S_ISREG(os.lstat(store.user_folder() / "trio" / "target.gguf").st_mode)


def test_a_disk_that_is_too_small_is_told_first(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hands.export("trio.capt")
    usage = shutil.disk_usage(hands.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000))
    for act in (lambda: hands.take(path), lambda: hands.export("more.capt")):
        with pytest.raises(ModelError, match=r"not enough room .* Nothing was copied"):
            act()
    assert installed() == {}
    assert not list(hands.folder.glob("more.capt*.part"))


def test_a_disk_that_fills_up(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hands.export("trio.capt")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written: No space left"):
        hands.take(path)
    assert installed() == {}


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

    path, other = hands.export("two.capt", "2"), hands.export("three.capt", "3")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", cut)
        hands.take(path)
    with pytest.raises(KeyboardInterrupt):
        hands.take(other, examine=stop)
    assert store.find("trio").version == "1"
    verify.verify(store.find("trio"))
    assert hands.take(path)[0].version == "2"


def test_what_is_left_is_told_and_deleted(hands: Hands, tmp_path: Path) -> None:
    path, left = hands.export("trio.capt"), store.staging_folder() / "trio"
    for name in ("trio", "trio.download"):
        left.with_name(name).mkdir(parents=True)
        (left.with_name(name) / "part").write_bytes(bytes(1_000))
    assert leftovers() == {"trio": 2_000}
    clear("trio")
    assert leftovers() == {} and os.listdir(store.staging_folder()) == ["trio.lock"]
    hands.take(path)
    # What a power cut took out of the store goes back there.
    os.rename(store.user_folder() / "trio", store.staging_folder() / "trio.old")
    assert list(leftovers()) == ["trio"]
    clear("trio")
    assert store.find("trio").version == "2"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("mine")
    (store.staging_folder() / "trio").symlink_to(tmp_path / "mine")
    clear("trio")
    assert (tmp_path / "mine" / "note").read_text() == "mine" and leftovers() == {}


def test_what_is_being_imported_is_never_touched(hands: Hands) -> None:
    path = hands.export("trio.capt")

    def during(_: Bundle) -> None:
        assert leftovers() == {}
        for act in (lambda: clear("trio"), lambda: hands.take(path)):
            with pytest.raises(ModelError, match="trio is being imported already"):
                act()

    assert hands.take(path, examine=during)[1]


# --- exports


def test_exports_are_held_against_the_manifest(hands: Hands) -> None:
    bundle = make_trio(hands.folder / "from")
    bundle.models["base"].path.write_bytes(b"x" * SIZES["base"])
    with pytest.raises(ModelError, match=r"base\.gguf is not the file that the bundle names"):
        archive.export(bundle, hands.folder / "trio.capt")
    with pytest.raises(UsageError, match=r"ends in \.capt"):
        archive.export(bundle, hands.folder / "trio")
    assert not list(hands.folder.glob("trio*"))


def test_an_export_overwrites_nothing(hands: Hands) -> None:
    path = hands.folder / "trio.capt"
    (hands.folder / "trio.capt.part").mkdir()
    (hands.folder / "trio.capt.part" / "thesis.txt").write_text("mine")
    bundle = make_trio(hands.folder / "from")
    with pytest.raises(UsageError, match="is there already"):  # it comes there meanwhile
        archive.export(bundle, path, report=lambda *_: path.write_text("mine"))
    with pytest.raises(UsageError, match="is there already"):
        archive.export(bundle, path)
    assert path.read_text() == "mine"
    path.unlink()
    archive.export(bundle, path, read_private(hands.key))
    assert (hands.folder / "trio.capt.part" / "thesis.txt").read_text() == "mine"
    assert path.stat().st_mode & 0o777 == 0o600
    again = archive.export(bundle, hands.folder / "again.capt", read_private(hands.key))
    assert path.read_bytes() == again.read_bytes()


def test_names_that_cannot_travel(tmp_path: Path) -> None:
    bundle = make_trio(tmp_path / "from")
    folder = tmp_path / "from"
    for name in ("sub/x.gguf", "CON.gguf", "lpt1", "x.", ".x", "a b", "bundle.toml", "BUNDLE.SIG"):
        base = replace(bundle.models["base"], path=folder / name)
        with pytest.raises(ModelError, match="has a name that cannot travel"):
            members(replace(bundle, models={**bundle.models, "base": base}))
    base = replace(bundle.models["base"], path=folder / "EXPERT.gguf")
    with pytest.raises(ModelError, match="in two ways"):
        members(replace(bundle, models={**bundle.models, "base": base}))


# --- files that lie anywhere, linked or copied


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "odd names, \u00e4 \u2028"
    folder.mkdir()
    found = {role: folder / f"{role} of mine.bin" for role in SIZES}
    for role, path in found.items():
        path.write_bytes(f"GGUF of the {role}".encode() * 100)
        path.chmod(0o644)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir(mode=0o700)
    return made


def test_what_others_may_write_is_copied(files: dict[str, Path], folder: Path) -> None:
    files["expert"].chmod(0o664)
    told: dict[str, float] = {}
    made, linked = assemble(Bundle.from_paths(*files.values()), folder, told.__setitem__)
    assert linked == ["base.gguf", "target.gguf"]
    for role in ("base", "target"):
        assert os.path.samefile(folder / f"{role}.gguf", files[role])
        assert describe(role, folder / f"{role}.gguf").sha256 == made.models[role].sha256
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
        assemble(Bundle.from_paths(*files.values()), folder, spoil)
