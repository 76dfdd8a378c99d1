"""Ed25519 signatures of manifests, and the public keys that are trusted.

A manifest names every file of a bundle with its digest, so one signature of its bytes holds for
all of them. Which keys are trusted is a matter of files in folders that only their owner may write;
a key comes there by another way than the bundles that it has signed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from capt_local.bundle.fields import NAME
from capt_local.bundle.manifest import SIGNATURE as SIGNATURE
from capt_local.errors import ModelError, UsageError
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

LARGEST_SIGNATURE = 4096
PUBLIC, PRIVATE = ".pub", ".key"
_MARK = 16  # digits of a fingerprint in the name of a file
# What is signed begins with this, so that no signature of another thing passes for one of these.
_CONTEXT = b"capt-local bundle manifest 1\n"
_LARGEST_KEY = 4096
TRUST_IT = (
    "If its fingerprint is that of your source, install it: capt-local models trust FILE.pub."
)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key.

    Attributes:
        fingerprint: SHA-256 of its 32 bytes, in hexadecimal.
        key: itself.
        name: of its file, without the ending; empty for one without a plain name.
    """

    fingerprint: str
    key: Ed25519PublicKey
    name: str = ""


def new_key(place: Path) -> tuple[Path, Path, str]:
    """Makes a pair of keys.

    Args:
        place: of the files, without their endings.

    Returns:
        The private key (mode 0600), the public key, and its fingerprint.

    Raises:
        UsageError: a file of that name is there, or cannot be written, or there is no name.
    """
    if place.name in ("", ".."):
        raise UsageError(f"{place} is a folder: give the keys a name in it, such as hospital.")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files = place.with_name(place.name + PRIVATE), place.with_name(place.name + PUBLIC)
    write_new(files[0], secret, 0o600)
    try:
        write_new(files[1], _pem(private.public_key()), 0o644)
    except BaseException:
        files[0].unlink()
        raise
    return *files, fingerprint(private.public_key())


def write_new(file: Path, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet.

    Raises:
        UsageError: it is there, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(file, flags | getattr(os, "O_BINARY", 0), mode), "wb") as stream:
            stream.write(data)
    except FileExistsError:
        raise UsageError(f"{file.name} is there already; nothing was written.") from None
    except OSError as error:
        raise UsageError(f"{file.name} cannot be written: {error.strerror}.") from None


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def read_public(file: Path) -> TrustedKey:
    """A public key in PEM.

    Raises:
        ModelError: the file cannot be read, or holds another thing.
    """
    try:
        key = serialization.load_pem_public_key(_key_bytes(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ModelError(f"{file.name} holds no public Ed25519 key in PEM.")
    found = fingerprint(key)
    return TrustedKey(found, key, _name(file, found))


def read_private(file: Path) -> Ed25519PrivateKey:
    """A private key in PEM that has no passphrase.

    Raises:
        UsageError: others may read it.
        ModelError: it cannot be read, or is another thing.
    """
    data = _key_bytes(file)
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"Others may read {file.name}: chmod 600 it, or make a new key.")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelError(f"{file.name} holds no private Ed25519 key in PEM without a passphrase.")
    return key


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature file of a manifest."""
    return _signature_file(fingerprint(key.public_key()), key.sign(_CONTEXT + manifest))


def _signature_file(name: str, signature: bytes) -> bytes:
    return json.dumps({"key": name, "signature": signature.hex()}).encode()


def signed_with(signature: bytes) -> str:
    """The fingerprint that a signature file names, which proves nothing by itself.

    Raises:
        ModelError: it is damaged.
    """
    return _parts(signature)[0]


def _parts(signature: bytes) -> tuple[str, bytes]:
    """The fingerprint and the signature of a signature file."""
    try:
        found = parse_object(signature)
        name, value = found.get("key"), found.get("signature")
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError
        data = bytes.fromhex(value)
        if signature != _signature_file(bytes.fromhex(name).hex(), data):
            raise ValueError
    except (NotReadable, ValueError):
        raise ModelError(f"The signature ({SIGNATURE}) is damaged. Get the bundle again.") from None
    return name, data


def check_signature(
    manifest: bytes, signature: bytes, keys: Mapping[str, TrustedKey], hint: str = TRUST_IT
) -> str:
    """Whether a trusted key has signed a manifest.

    Args:
        manifest: its bytes.
        signature: those of the signature file.
        keys: by fingerprint.
        hint: what to do about a key that is not trusted.

    Returns:
        The fingerprint of the key.

    Raises:
        ModelError: no; says why.
    """
    name, data = _parts(signature)
    if name not in keys:
        raise ModelError(
            f"The bundle is signed with a key that is not trusted here ({name[:64]}). {hint}"
        )
    try:
        keys[name].key.verify(data, _CONTEXT + manifest)
    except InvalidSignature:
        raise ModelError(
            "The signature does not fit the manifest: one of them was changed. "
            "Get the bundle again from its source."
        ) from None
    return name


def trusted_keys(folders: Iterable[Path]) -> dict[str, TrustedKey]:
    """The keys that are installed.

    Args:
        folders: that may hold some; those that are not there are left out.

    Raises:
        ModelError: a key is no key, or others than its owner may write it; or a folder or key
            cannot be read.
    """
    found: dict[str, TrustedKey] = {}
    for folder in folders:
        for file in _public_files(folder):
            _refuse_shared(folder)
            _refuse_shared(file)
            key = read_public(file)
            found[key.fingerprint] = key
    return found


def _public_files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == PUBLIC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def install(file: Path, folder: Path) -> TrustedKey:
    """Copies a public key to where the trusted ones lie.

    Raises:
        ModelError: it is no public key, or cannot be installed.
    """
    key = read_public(file)
    mark = key.fingerprint[:_MARK]
    place = folder / f"{key.name}.{mark}{PUBLIC}".lstrip(".")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if key.fingerprint not in trusted_keys([folder]):
            write_new(place, _pem(key.key), 0o644)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror}.") from None
    return key


def _name(file: Path, fingerprint: str) -> str:
    """What a key is called: the name of its file, without what `install` adds to it."""
    mark = fingerprint[:_MARK]
    name = file.name.removesuffix(PUBLIC)
    name = "" if name == mark else name.removesuffix(f".{mark}")
    return name if NAME.fullmatch(name) else ""


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_bytes(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise ModelError(f"The key {file.name} is not there, or is not a file.")
        with file.open("rb") as stream:
            return stream.read(_LARGEST_KEY)
    except OSError as error:
        raise ModelError(f"The key {file.name} cannot be read: {error.strerror}.") from None


def _unreadable(place: Path, error: OSError) -> ModelError:
    """Keys that cannot be read are not passed over: what they have signed would be nobody's."""
    return ModelError(
        f"{place} cannot be read, so nobody knows which keys are trusted: "
        f"{error.strerror or 'no access'}. Let all who use this program read it (chmod a+rX)."
    )


def _refuse_shared(place: Path) -> None:
    """Whoever may write a trusted key decides which models run."""
    if os.name != "posix":
        return
    try:
        found = place.stat()
    except OSError as error:
        raise _unreadable(place, error) from None
    if found.st_mode & _OTHERS_WRITE or found.st_uid not in (os.geteuid(), 0):
        raise ModelError(
            f"{place} is not to be trusted: others may write it. Make it yours and chmod go-w it."
        )
