"""Which bundles may be used here: signatures, trusted keys, and the rule of the site."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from capt_local.bundles.store import is_packaged
from capt_local.bundles.verify import Check
from capt_local.config import Feature, key_folders, read_site

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capt_local.bundles.manifest import Bundle
    from capt_local.bundles.sign import TrustedKey


def signed(bundle: Bundle) -> Bundle:
    """A bundle with its signer: the key that signed it at import, or one that is trusted now.

    A notice names a key that is not trusted.

    Raises:
        ModelError: the signature is damaged, or does not fit the manifest.
    """
    if not bundle.has_signature_file:
        return bundle
    from capt_local.bundles.sign import signer_of

    signer, untrusted = signer_of(bundle, trusted)
    notices = bundle.notices
    if untrusted:
        notice = (
            f"The bundle {bundle.id} is signed with a key that is not trusted here ({untrusted})."
        )
        notices = (*(one for one in notices if one != notice), notice)
    return dataclasses.replace(bundle, notices=notices, signer=signer)


def permitted(bundle: Bundle, check: Check = Check.CACHED) -> Bundle:
    """The bundle with its signer, if the site allows its use.

    Where unsigned bundles are forbidden, one of the site's own keys has to have signed it: a key
    that a user trusts would lift the limit. The demo that came with the program needs no signature.

    Args:
        bundle: read from its manifest, or made of files that were given by their paths.
        check: how its digests will be checked; without a check, its signature proves nothing.

    Raises:
        UsageError: the site forbids it.
        ModelError: see `signed`.
    """
    limits = read_site().limits
    if not limits.forbids(Feature.UNSIGNED):
        return signed(bundle)
    from capt_local.bundles.sign import signer_of

    if bundle.folder is None:
        limits.refuse(Feature.UNSIGNED, "A model file that is given by its path")
    if any(file.sha256 is None for _, file in bundle.attached):
        limits.refuse(Feature.UNSIGNED, "An adapter that is given by its path")
    if check is Check.NEVER:
        limits.refuse(Feature.UNSIGNED, "--verify never")
    if not is_packaged(bundle):
        signer, _ = signer_of(bundle, lambda: trusted(by_the_site=True), receipts=False)
        if signer is None:
            limits.refuse(Feature.UNSIGNED, "A bundle that no key of the site has signed")
        bundle = dataclasses.replace(bundle, signer=signer)
    # The cache of digests is a file of the user, who could write another one.
    return dataclasses.replace(bundle, always_hash=True)


def signer_text(bundle: Bundle) -> str:
    """Who has signed a bundle, for people."""
    if bundle.signer is not None:
        return str(bundle.signer)
    if is_packaged(bundle):
        return "nobody; it came with the program"
    return "nobody trusted here" if bundle.has_signature_file else "nobody: it is unsigned"


def trusted(*, by_the_site: bool = False) -> Mapping[str, TrustedKey]:
    """The keys that are trusted here: the site's and the user's, or the site's alone.

    Raises:
        ModelError: one is no key, or others than its owner may write it.
    """
    from capt_local.bundles.sign import trusted_keys

    site, user = key_folders()
    return trusted_keys([site] if by_the_site else [site, user])
