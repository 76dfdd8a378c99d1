"""Keys, signatures, who has signed a bundle, and what a receipt is worth."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from capt_local.bundles import store
from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE, Signer
from capt_local.bundles.sign import (
    TrustedKey,
    check_signature,
    install,
    new_key,
    read_private,
    read_public,
    receipt,
    sign,
    signer_of,
    trusted_keys,
    uninstall,
)
from capt_local.config import MODELS_VARIABLE
from capt_local.errors import ModelError, UsageError
from tests.bundles.travelling import Hands


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public, _ = new_key(tmp_path / "hospital.site")
    return private, public


def test_a_pair_of_keys(keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert (private.name, public.name) == ("hospital.site.key", "hospital.site.pub")
    assert private.stat().st_mode & 0o777 == 0o600
    trusted = read_public(public)
    known = {trusted.fingerprint: trusted}
    signature = sign(b"manifest", read_private(private))
    assert check_signature(b"manifest", signature, known) == trusted.fingerprint
    with pytest.raises(ModelError, match="does not fit the manifest"):
        check_signature(b"Manifest", signature, known)
    with pytest.raises(ModelError, match="not trusted here"):
        check_signature(b"manifest", signature, {})
    private.chmod(0o640)
    with pytest.raises(UsageError, match="Others may read"):
        read_private(private)


def test_one_bit_of_a_signature(keys: tuple[Path, Path]) -> None:
    trusted = read_public(keys[1])
    signature = sign(b"manifest", read_private(keys[0]))
    for place in range(len(signature)):
        for bit in range(8):
            flipped = bytearray(signature)
            flipped[place] ^= 1 << bit
            with pytest.raises(ModelError):
                check_signature(b"manifest", bytes(flipped), {trusted.fingerprint: trusted})


def test_keys_are_not_overwritten(keys: tuple[Path, Path], tmp_path: Path) -> None:
    before = keys[0].read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        new_key(tmp_path / "hospital.site")
    assert keys[0].read_bytes() == before
    keys[0].unlink()
    with pytest.raises(UsageError, match="is there already; nothing was written"):
        new_key(tmp_path / "hospital.site")
    assert not keys[0].exists()


def test_installed_keys(keys: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "config" / "keys"
    assert trusted_keys([folder]) == {}
    key = install(keys[1], folder)
    assert install(keys[1], folder).fingerprint == key.fingerprint
    assert list(trusted_keys([tmp_path / "none", folder])) == [key.fingerprint]
    (folder / "note.txt").write_text("not a key, and not asked")
    assert len(trusted_keys([folder])) == 1
    (file,) = folder.glob("*.pub")
    for place in (file, folder):
        mode = place.stat().st_mode
        place.chmod(mode | 0o020)
        with pytest.raises(ModelError, match="others may write it"):
            trusted_keys([folder])
        place.chmod(mode)
    file.write_text("broken")
    with pytest.raises(ModelError, match="no public Ed25519 key"):
        trusted_keys([folder])


# --- receipts


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands.at(tmp_path / "hands")


@pytest.fixture
def place(hands: Hands) -> Path:
    """Where a signed bundle is installed."""
    hands.take(hands.export("trio.capt"))
    return store.user_folder() / "trio"


def no_keys() -> Mapping[str, TrustedKey]:
    return {}


def not_asked() -> Mapping[str, TrustedKey]:
    raise AssertionError("keys were read without need")


def test_the_key_of_the_import_is_known_later(place: Path, hands: Hands) -> None:
    signer = Signer(hands.trusted.fingerprint, "hands")
    assert signer_of(store.find("trio"), not_asked) == (signer, "")
    assert str(signer) == f"hands ({signer.key})"


def test_without_its_receipt_the_key_has_to_be_trusted_now(place: Path, hands: Hands) -> None:
    (place / RECEIPT).unlink()
    name = hands.trusted.fingerprint
    assert signer_of(store.find("trio"), no_keys) == (None, name)
    keys = {name: hands.trusted}
    assert signer_of(store.find("trio"), lambda: keys) == (Signer(name, "hands"), "")


def test_a_receipt_of_another_place_is_not_believed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place, tmp_path / "stick" / "trio")
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "stick"))
    for bundle in (store.find("trio"), store.find(tmp_path / "stick" / "trio")):
        assert bundle.folder == tmp_path / "stick" / "trio"
        assert signer_of(bundle, no_keys)[0] is None


def test_a_folder_that_is_copied_into_the_store_brings_no_receipt(
    hands: Hands, tmp_path: Path
) -> None:
    """Anybody can write one with any name, for a file of theirs."""
    made = tmp_path / "trio"
    with tarfile.open(hands.export("trio.capt")) as archive:
        archive.extractall(made, filter="data")
    key = dataclasses.replace(hands.trusted, name="hospital")
    (made / RECEIPT).write_bytes(receipt(key, made / MANIFEST))
    (made / RECEIPT).chmod(0o600)
    known = {key.fingerprint: hands.trusted}
    for copy in (shutil.copytree, partial(shutil.copytree, symlinks=True), copied_by_the_system):
        copy(made, store.user_folder() / "trio")
        assert signer_of(store.find("trio"), no_keys) == (None, key.fingerprint)
        assert signer_of(store.find("trio"), lambda: known)[0] == Signer(key.fingerprint, "hands")
        shutil.rmtree(store.user_folder() / "trio")


def copied_by_the_system(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)


def test_a_link_in_the_place_of_the_manifest_brings_no_receipt(
    place: Path, hands: Hands, tmp_path: Path
) -> None:
    """Where it leads to is known before the copy."""
    elsewhere = tmp_path / "elsewhere.toml"
    shutil.copyfile(place / MANIFEST, elsewhere)
    (place / MANIFEST).unlink()
    (place / MANIFEST).symlink_to(elsewhere)
    told = json.loads(receipt(hands.trusted, elsewhere))
    for mark in (told["file"], "", None):
        (place / RECEIPT).write_text(json.dumps(told | {"file": mark}))
        assert signer_of(store.find("trio"), no_keys)[0] is None


def test_a_receipt_moves_with_its_folder(
    place: Path, hands: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "elsewhere"
    place.rename(place.with_name("moved"))
    place.with_name("moved").rename(place)
    store.user_folder().parent.rename(new)
    monkeypatch.setattr(store, "user_folder", lambda: new / "models")
    found = store.find("trio")
    assert found.folder == new / "models" / "trio"
    assert signer_of(found, not_asked)[0] == Signer(hands.trusted.fingerprint, "hands")


def test_an_import_again_brings_a_receipt_that_fits(place: Path, hands: Hands) -> None:
    shutil.copytree(place, place.with_name("copy"))
    shutil.rmtree(place)
    place.with_name("copy").rename(place)
    assert signer_of(store.find("trio"), no_keys)[0] is None
    assert hands.take(hands.folder / "trio.capt")[1] is False
    assert signer_of(store.find("trio"), not_asked)[0] is not None


def test_a_receipt_of_another_key_vouches_for_nothing(place: Path, tmp_path: Path) -> None:
    """Nor one that others may have written."""
    for shared, mode in ((place / RECEIPT, 0o600), (place, 0o700)):
        shared.chmod(0o777)
        assert signer_of(store.find("trio"), no_keys)[0] is None
        shared.chmod(mode)
    other = Hands.at(tmp_path / "others")
    (place / RECEIPT).write_bytes(receipt(other.trusted, place / MANIFEST))
    assert signer_of(store.find("trio"), no_keys)[0] is None


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"\xff", b'{"key": 1, "name": 2, "public": 3}', b"x" * 9000]
)
def test_a_receipt_that_is_none(text: bytes, place: Path) -> None:
    (place / RECEIPT).write_bytes(text)
    assert signer_of(store.find("trio"), no_keys)[0] is None


def test_a_manifest_that_was_changed_is_refused(place: Path) -> None:
    """As is a damaged signature."""
    text = (place / MANIFEST).read_text()
    (place / MANIFEST).write_text(text.replace('version = "2"', 'version = "3"'))
    with pytest.raises(ModelError, match="signature does not fit the manifest"):
        signer_of(store.find("trio"), not_asked)
    (place / SIGNATURE).write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"signature .* is damaged"):
        signer_of(store.find("trio"), no_keys)


def test_a_key_that_is_not_trusted_any_more(place: Path, hands: Hands, tmp_path: Path) -> None:
    """Not for what was imported with it, either; the bundle stays."""
    folder, fingerprint = tmp_path / "config", hands.trusted.fingerprint
    for name in ("hands", "hands.pub", fingerprint[:8], fingerprint):
        install(hands.folder / "hands.pub", folder)
        hands.take(hands.folder / "trio.capt")
        assert signer_of(store.find("trio"), not_asked)[0] is not None
        key, bundles = uninstall(name, folder)
        assert (key.fingerprint, bundles) == (fingerprint, ["trio"])
        assert trusted_keys([folder]) == {}
        assert signer_of(store.find("trio"), no_keys) == (None, fingerprint)
    for name in ("hands", "", "x", fingerprint[:7]):
        with pytest.raises(ModelError, match="No key has that name or fingerprint"):
            uninstall(name, folder)
    other = Hands.at(tmp_path / "others").folder / "hands.pub"
    install(hands.folder / "hands.pub", folder)
    install(other, folder)
    with pytest.raises(ModelError, match="Several keys have"):
        uninstall("hands", folder)
    assert len(trusted_keys([folder])) == 2


@pytest.mark.parametrize("ending", [".key", ".pub", ""])
def test_the_name_of_a_key_has_no_ending(ending: str, tmp_path: Path) -> None:
    private, public, _ = new_key(tmp_path / f"hospital{ending}")
    assert (private.name, public.name) == ("hospital.key", "hospital.pub")
    assert read_public(public).name == "hospital"
    with pytest.raises(ModelError, match=r"The private key is hospital\.key\."):
        read_private(public)
