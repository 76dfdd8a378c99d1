"""Keys and signatures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import x25519

from capt_local.bundles.sign import (
    check_signature,
    install,
    new_key,
    read_private,
    read_public,
    sign,
    trusted_keys,
)
from capt_local.errors import ModelError, UsageError


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


@pytest.mark.parametrize("place", [".", "", "..", "/", "there/.."])
def test_keys_without_a_name(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a folder: give the keys a name in it"):
        new_key(Path(place))
    assert not list(tmp_path.iterdir())


def test_one_bit_of_a_signature(keys: tuple[Path, Path]) -> None:
    trusted = read_public(keys[1])
    signature = sign(b"manifest", read_private(keys[0]))
    for place in range(len(signature)):
        for bit in range(8):
            flipped = bytearray(signature)
            flipped[place] ^= 1 << bit
            with pytest.raises(ModelError):
                check_signature(b"manifest", bytes(flipped), {trusted.fingerprint: trusted})


@pytest.mark.parametrize("odd", [b"", b"{}", b"[]", b"\xff", b'{"key": 1, "signature": 2}'])
def test_signatures_that_are_none(odd: bytes) -> None:
    with pytest.raises(ModelError, match="is damaged"):
        check_signature(b"manifest", odd, {})


def test_keys_are_not_overwritten(keys: tuple[Path, Path], tmp_path: Path) -> None:
    before = keys[0].read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        new_key(tmp_path / "hospital.site")
    assert keys[0].read_bytes() == before
    keys[0].unlink()
    with pytest.raises(UsageError, match="is there already; nothing was written"):
        new_key(tmp_path / "hospital.site")
    assert not keys[0].exists()


def test_a_private_key_that_others_may_read(keys: tuple[Path, Path]) -> None:
    keys[0].chmod(0o640)
    with pytest.raises(UsageError, match="Others may read"):
        read_private(keys[0])


def test_files_that_are_no_keys(keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no key")
    (tmp_path / "x").chmod(0o600)
    os.mkfifo(tmp_path / "pipe")
    other = (
        x25519.X25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "other").write_bytes(other)
    for name in ("x", "pipe", "none", "other", "."):
        for read in (read_public, read_private):
            if not (name == "other" and read is read_private):
                with pytest.raises(ModelError):
                    read(tmp_path / name)
    with pytest.raises(ModelError, match="no public Ed25519 key"):
        read_public(keys[0])


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


def test_keys_that_cannot_be_read_are_told(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "keys"
    install(keys[1], folder)
    (folder / "away.pub").symlink_to("away.pub")
    with pytest.raises(ModelError, match=r"away\.pub cannot be read, .*symbolic links.*chmod"):
        trusted_keys([folder])
    (folder / "away.pub").unlink()
    (folder / "away.pub").symlink_to("none.pub")  # the keys behind it count too
    with pytest.raises(ModelError, match=r"away\.pub cannot be read, .*No such file"):
        trusted_keys([folder])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelError, match=r"loop cannot be read, .*symbolic links.*chmod"):
        trusted_keys([folder.with_name("loop")])
    (folder / "away.pub").unlink()
    assert len(trusted_keys([folder])) == 1

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)  # root may list everything
    with pytest.raises(ModelError, match=r"keys cannot be read, .*: Permission denied\."):
        trusted_keys([folder])
    with pytest.raises(ModelError, match=r"keys cannot be read, .*: Permission denied\."):
        install(keys[1], folder)
