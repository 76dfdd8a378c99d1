"""Ed25519 signatures of manifests, and the public keys that are trusted.

A manifest names every file of a bundle with its digest, so one signature of its bytes holds for
all of them. Trusted keys are files in folders that only their owner may write; a key must arrive by
another way than the bundles that it has signed.

An import writes a receipt beside the manifest with the key that verified it. So the signer stays
known, also if the key was trusted for that import only. A receipt is valid only in the user's own
store, only if no other account can have written it, and only for the manifest file that the import
wrote, identified by inode and times, which nobody can predict. So a receipt in a folder that was
copied into the store is invalid. The signature is verified against the manifest in any case, and a
bundle that has a receipt but no signature is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from capt_local.bundles import store
from capt_local.bundles.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    NAME,
    RECEIPT,
    SIGNATURE,
    Bundle,
    Signer,
)
from capt_local.bundles.verify import is_private
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import (
    ParseError,
    make_private_folder,
    others_may_write,
    parse_object,
    read_regular,
    stamp_of,
)

LARGEST_SIGNATURE = 4096
PUBLIC, PRIVATE = ".pub", ".key"
_MARK = 16  # digits of a fingerprint in the name of a file
# Domain separation: every signed message begins with this.
_CONTEXT = b"capt-local bundle manifest 1\n"
_LARGEST_KEY = _LARGEST_RECEIPT = 4096
TRUST_HINT = (
    "If its fingerprint is that of your source, install it: capt-local models trust FILE.pub."
)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key."""

    fingerprint: str  # SHA-256 of its 32 bytes, in hexadecimal
    key: Ed25519PublicKey
    name: str = ""  # of its file, without the ending; empty for one without a plain name


def new_key(place: Path) -> tuple[Path, Path, str]:
    """Makes a pair of keys: NAME.key (mode 0600) and NAME.pub.

    Returns:
        Both files, and the fingerprint.

    Raises:
        UsageError: a file of that name is there, or cannot be written, or there is no name.
    """
    name = place.name.removesuffix(PRIVATE).removesuffix(PUBLIC)
    if name in ("", ".."):
        raise UsageError(f"{place} is a folder: give the keys a name in it, such as hospital.")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files = place.with_name(name + PRIVATE), place.with_name(name + PUBLIC)
    _write_new(files[0], secret, 0o600)
    try:
        _write_new(files[1], _pem(private.public_key()), 0o644)
    except BaseException:
        files[0].unlink()
        raise
    return *files, fingerprint(private.public_key())


def _write_new(file: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(file, flags, mode), "wb") as stream:
            stream.write(data)
    except FileExistsError:
        raise UsageError(f"{file.name} is there already; nothing was written.") from None
    except OSError as error:
        raise UsageError(f"{file.name} cannot be written: {error.strerror}.") from None


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def read_public(file: Path) -> TrustedKey:
    """A public key in PEM. Raises ModelError: the file cannot be read, or holds another thing."""
    try:
        key = serialization.load_pem_public_key(_key_bytes(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ModelError(f"{file.name} holds no public Ed25519 key in PEM.")
    found = fingerprint(key)
    # Without what `install` adds to the name.
    name = file.name.removesuffix(PUBLIC).removesuffix(found[:_MARK]).removesuffix(".")
    return TrustedKey(found, key, name if NAME.fullmatch(name) else "")


def read_private(file: Path) -> Ed25519PrivateKey:
    """A private key in PEM that has no passphrase.

    Raises:
        UsageError: others may read it.
        ModelError: it cannot be read, or is another thing.
    """
    try:
        key = serialization.load_pem_private_key(_key_bytes(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        hint = f" The private key is {file.stem}{PRIVATE}." if file.suffix == PUBLIC else ""
        raise ModelError(
            f"{file.name} holds no private Ed25519 key in PEM without a passphrase.{hint}"
        )
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"Others may read {file.name}: chmod 600 it, or make a new key.")
    return key


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature file of a manifest."""
    return _signature_file(fingerprint(key.public_key()), key.sign(_CONTEXT + manifest))


def _signature_file(name: str, signature: bytes) -> bytes:
    return json.dumps({"key": name, "signature": signature.hex()}).encode()


def _parts(signature: bytes) -> tuple[str, bytes]:
    """The key's fingerprint in a signature file (not verified), and the signature."""
    try:
        found = parse_object(signature)
        name, data = (bytes.fromhex(str(found.get(key))) for key in ("key", "signature"))
        if signature != _signature_file(name.hex(), data):
            raise ValueError
    except (ParseError, ValueError):
        raise ModelError(f"The signature ({SIGNATURE}) is damaged. Get the bundle again.") from None
    return name.hex(), data


def check_signature(
    manifest: bytes, signature: bytes, keys: Mapping[str, TrustedKey], hint: str = TRUST_HINT
) -> str:
    """Checks that one of these keys has signed a manifest, and returns its fingerprint.

    Raises:
        ModelError: none has; says why, and as `hint` what to do about a key that is not trusted.
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
    """The keys that are installed in folders, which need not be there, by fingerprint.

    Raises:
        ModelError: a key is no key, or others than its owner may write it; or a folder or key
            cannot be read.
    """
    return {key.fingerprint: key for folder in folders for key in _installed(folder).values()}


def _installed(folder: Path) -> dict[Path, TrustedKey]:
    found: dict[Path, TrustedKey] = {}
    place = folder
    try:
        for place in sorted(file for file in folder.iterdir() if file.suffix == PUBLIC):
            _require_private(folder)
            _require_private(place)
            found[place] = read_public(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        # Unreadable keys are an error: what they have signed would silently become untrusted.
        raise ModelError(
            f"{place} cannot be read, so nobody knows which keys are trusted: "
            f"{error.strerror or 'no access'}. Let all who use this program read it (chmod a+rX)."
        ) from None
    return found


def _require_private(place: Path) -> None:
    """Refuses a path that others may write: a trusted key decides which models run."""
    if others_may_write(place.stat()):
        raise ModelError(
            f"{place} is not to be trusted: others may write it. Make it yours and chmod go-w it."
        )


def install(file: Path, folder: Path) -> TrustedKey:
    """Copies a public key to where the trusted ones lie.

    Raises:
        ModelError: it is no public key, or cannot be installed.
    """
    key = read_public(file)
    place = folder / f"{key.name}.{key.fingerprint[:_MARK]}{PUBLIC}".lstrip(".")
    try:
        make_private_folder(folder)
        if key.fingerprint not in trusted_keys([folder]):
            _write_new(place, _pem(key.key), 0o644)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror}.") from None
    return key


def uninstall(name: str, folder: Path) -> tuple[TrustedKey, list[str]]:
    """Removes a trusted key, and the receipts of imports that were verified with it.

    Args:
        name: of the key, or the beginning of its fingerprint.
        folder: that holds the keys of the user.

    Returns:
        The key, and the ids of the bundles in the user's own store whose receipts named it.

    Raises:
        ModelError: there is no such key in the folder, or several, or it cannot be deleted.
    """
    whole = name.removesuffix(PUBLIC)
    matching = [
        (file, key)
        for file, key in _installed(folder).items()
        if (whole and whole in (key.name, file.stem))
        or (len(name) >= 8 and key.fingerprint.startswith(name))
    ]
    if len(matching) != 1:
        many = "Several keys have" if matching else "No key has"
        raise ModelError(
            f"{many} that name or fingerprint in {folder}. 'capt-local doctor' names the keys; "
            "those of the site are deleted by its administrator."
        )
    [(file, key)] = matching
    bundles = []
    try:
        file.unlink()
        for each in sorted(store.user_folder().glob(f"*/{RECEIPT}")):
            found = _receipt(each.parent)
            if found and found[0].fingerprint == key.fingerprint:
                each.unlink()
                bundles.append(each.parent.name)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror}.") from None
    return key, bundles


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_bytes(file: Path) -> bytes:
    try:
        return read_regular(file, _LARGEST_KEY)
    except FileNotFoundError:
        raise ModelError(f"The key {file.name} is not there.") from None
    except OSError as error:
        raise ModelError(f"The key {file.name} cannot be read: {error.strerror}.") from None


def signer_of(
    bundle: Bundle, keys: Callable[[], Mapping[str, TrustedKey]], *, receipts: bool = True
) -> tuple[Signer | None, str]:
    """Who has signed a bundle.

    Args:
        bundle: read from its manifest.
        keys: returns the trusted keys, by fingerprint; called only if needed.
        receipts: whether the key of an import receipt counts as trusted.

    Returns:
        The signer, if the key is trusted; else the fingerprint of the key, if there is one.

    Raises:
        ModelError: the signature is damaged, does not fit the manifest, or is gone although the
            bundle was imported with one; or a trusted key is none, or not to be trusted.
    """
    folder = bundle.folder
    if folder is None:
        return None, ""
    signature = read_signature(folder)
    if not signature:
        if os.path.lexists(folder / RECEIPT):
            raise ModelError(
                f"The bundle {bundle.id} was imported with a signature, and its {SIGNATURE} is "
                "gone, so nobody knows who made it any more. Import it again from its source; who "
                f"changes it on purpose deletes its {RECEIPT} too."
            )
        return None, ""
    try:
        manifest = read_regular(folder / MANIFEST, LARGEST_MANIFEST)
    except OSError:
        return None, ""
    if hashlib.sha256(manifest).hexdigest() != bundle.manifest_sha256:
        return None, ""  # the manifest that was read has another name, or was changed
    name, _ = _parts(signature)
    found = _receipt(folder) if receipts else None
    if found and found[0].fingerprint == name:
        # Also with a receipt of another file: what was changed is refused.
        check_signature(manifest, signature, {name: found[0]})
        if found[1]:
            return Signer(name, found[0].name), ""
    known = keys()
    if name not in known:
        return None, name
    check_signature(manifest, signature, known)
    return Signer(name, known[name].name), ""


def read_signature(folder: Path) -> bytes:
    """The signature file of a bundle; empty if it has none.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return read_regular(folder / SIGNATURE, LARGEST_SIGNATURE)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise ModelError(f"{SIGNATURE} cannot be read: {error.strerror}.") from None


def receipt(key: TrustedKey, manifest: Path) -> bytes:
    """The receipt of an import: the signing key, and the identity of the manifest file."""
    public = key.key.public_bytes_raw().hex()
    about = {"key": key.fingerprint, "name": key.name, "public": public, "file": _mark(manifest)}
    return json.dumps(about).encode()


def _mark(manifest: Path) -> str:
    """The identity (inode, size, times) of a manifest file; empty if it is not a regular file."""
    found = os.lstat(manifest)  # a link would lead a copy to a file that is known before
    # Without the device, whose number some file systems choose anew at each start.
    return ":".join(map(str, stamp_of(found)[1:])) if stat.S_ISREG(found.st_mode) else ""


def _receipt(folder: Path) -> tuple[TrustedKey, bool] | None:
    """The key that a receipt names, and whether it was made for this very file."""
    place, manifest = folder / RECEIPT, folder / MANIFEST
    with contextlib.suppress(OSError, ParseError, ValueError):
        own = store.is_in_store(folder, store.user_folder())
        if own and is_private(place) and is_private(manifest) and not place.is_symlink():
            found = parse_object(read_regular(place, _LARGEST_RECEIPT))
            public, name = found.get("public"), found.get("name")
            if isinstance(public, str) and isinstance(name, str) and name.isprintable():
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
                mark = _mark(manifest)
                fits = mark != "" and found.get("file") == mark
                return TrustedKey(fingerprint(key), key, name), fits
    return None
