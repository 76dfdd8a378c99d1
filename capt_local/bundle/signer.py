"""Who vouches for a bundle: the trusted key that has signed its manifest.

An import leaves a receipt beside the manifest: which key it was held against. So the signer is
known later too, also where the key was trusted for that one import. A receipt counts in the user's
own store alone and only where nobody else can have written it; whatever it says, the signature is
held against the manifest again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.bundle import store
from capt_local.bundle.known import is_private
from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.strict.json import parse_object
from capt_local.strict.problems import NotReadable

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
    known = {name: kept} if kept and kept.fingerprint == name else keys()
    if name not in known:
        return Vouched(stranger=name)
    check_signature(manifest, signature, known)
    return Vouched(Signer(name, known[name].name))


def receipt(key: TrustedKey) -> bytes:
    """What an import leaves of the key that vouched."""
    public = key.key.public_bytes_raw().hex()
    told = {"key": key.fingerprint, "name": key.name, "public": public}
    return json.dumps(told).encode()


def _manifest(bundle: Bundle, folder: Path) -> bytes | None:
    """The bytes of the manifest that was read; None if it has another name, or was changed."""
    with contextlib.suppress(OSError):
        data = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(data).hexdigest() == bundle.manifest_sha256:
            return data
    return None


def _receipt(folder: Path) -> TrustedKey | None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from capt_local.bundle.signing import TrustedKey, fingerprint

    place = folder / RECEIPT
    with contextlib.suppress(OSError, NotReadable, ValueError):
        own = folder.resolve().parent == store.user_folder().resolve()
        if own and is_private(place) and not place.is_symlink():
            with place.open("rb") as stream:
                found = parse_object(stream.read(_LARGEST))
            public, name = found.get("public"), found.get("name")
            if isinstance(public, str) and isinstance(name, str) and name.isprintable():
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
                return TrustedKey(fingerprint(key), key, name)
    return None
