"""Who vouches for a bundle: the trusted key that has signed its manifest.

An import leaves a receipt beside the manifest: which key it was held against. So the signer is
known later too, also where the key was trusted for that one import. A receipt counts in the user's
own store alone, only where nobody else can have written it, and only for the very file that the
import wrote: its place on the disk and its times, which nobody knows before a copy is made. So a
folder that is copied into the store brings no receipt. Whatever it says, the signature is held
against the manifest again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.bundle import store
from capt_local.bundle.known import is_private
from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable
from capt_local.strict.stamp import stamp_of

if TYPE_CHECKING:
    from capt_local.bundle.signing import TrustedKey

_LARGEST = 4096

Keys = Callable[[], Mapping[str, "TrustedKey"]]


@dataclass(frozen=True, slots=True)
class Vouched:
    """What is known of the signature of a bundle.

    Attributes:
        signer: whose key has signed it; None where nobody has, or a key that is not trusted.
        stranger: fingerprint of a key that is not trusted; empty without one.
    """

    signer: Signer | None = None
    stranger: str = ""


def vouched(bundle: Bundle, keys: Keys, *, receipts: bool = True) -> Vouched:
    """Who has signed a bundle.

    Args:
        bundle: read from its manifest.
        keys: gives the keys that are trusted, by fingerprint; asked only if there is need.
        receipts: whether a key counts that was trusted at import.

    Raises:
        ModelError: the signature is damaged, or does not fit the manifest; or a trusted key is
            none, or not to be trusted.
    """
    folder = bundle.folder
    if folder is None or not (folder / SIGNATURE).is_file():
        return Vouched()
    from capt_local.bundle.exporting import kept_signature
    from capt_local.bundle.signing import check_signature, signed_with

    signature = kept_signature(folder)
    manifest = _manifest(bundle, folder)
    if not signature or manifest is None:
        return Vouched()
    name = signed_with(signature)
    kept = _receipt(folder) if receipts else None
    if kept and kept.key.fingerprint == name:
        # Also with a receipt that vouches for nothing: what was changed is refused.
        check_signature(manifest, signature, {name: kept.key})
        if kept.fits:
            return Vouched(Signer(name, kept.key.name))
    known = keys()
    if name not in known:
        return Vouched(stranger=name)
    check_signature(manifest, signature, known)
    return Vouched(Signer(name, known[name].name))


def receipt(key: TrustedKey, manifest: Path) -> bytes:
    """What an import leaves of the key that vouched.

    Args:
        key: that vouched.
        manifest: where the import has put it; it is not written after this.

    Raises:
        OSError: it is not there.
    """
    public = key.key.public_bytes_raw().hex()
    told = {"key": key.fingerprint, "name": key.name, "public": public, "file": _mark(manifest)}
    return json.dumps(told).encode()


def _mark(manifest: Path) -> str:
    """Which file a manifest is; empty for what no import writes, such as a link.

    Raises:
        OSError: it is not there.
    """
    found = os.lstat(manifest)  # a link would lead a copy to a file that is known before
    # Without the device, whose number some file systems choose anew at each start.
    return ":".join(map(str, stamp_of(found)[1:])) if stat.S_ISREG(found.st_mode) else ""


def _manifest(bundle: Bundle, folder: Path) -> bytes | None:
    """The bytes of the manifest that was read; None if it has another name, or was changed."""
    with contextlib.suppress(OSError):
        data = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(data).hexdigest() == bundle.manifest_sha256:
            return data
    return None


@dataclass(frozen=True, slots=True)
class _Receipt:
    """What lies beside a manifest.

    Attributes:
        key: that it names.
        fits: whether it was made for this very file.
    """

    key: TrustedKey
    fits: bool


def _receipt(folder: Path) -> _Receipt | None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from capt_local.bundle.signing import TrustedKey, fingerprint

    place, manifest = folder / RECEIPT, folder / MANIFEST
    with contextlib.suppress(OSError, NotReadable, ValueError):
        own = store.lies_in(folder, store.user_folder())
        if own and is_private(place) and is_private(manifest) and not place.is_symlink():
            with place.open("rb") as stream:
                found = parse_object(stream.read(_LARGEST))
            public, name = found.get("public"), found.get("name")
            if isinstance(public, str) and isinstance(name, str) and name.isprintable():
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
                mark = _mark(manifest)
                fits = mark != "" and found.get("file") == mark
                return _Receipt(TrustedKey(fingerprint(key), key, name), fits)
    return None
