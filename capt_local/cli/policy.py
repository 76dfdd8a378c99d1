"""What a site forbids, asked where no option is: commands of a chat, weights however they came."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from capt_local.bundles.verify import Check
from capt_local.config import Feature, key_folders, read_site
from capt_local.decoding.options import CombineOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capt_local.bundles.manifest import Bundle
    from capt_local.bundles.sign import TrustedKey


def check_weights(combine: CombineOptions) -> None:
    """Refuses fixed weights that the site forbids.

    Raises:
        UsageError: one is wider than the site allows.
    """
    read_site().limits.check_weights((*combine.alphas, *combine.powers))


def check_pull(what: str) -> None:
    """Refuses to download where the site forbids that.

    Args:
        what: the command that asks, for the error.

    Raises:
        UsageError: it is forbidden.
    """
    read_site().limits.refuse(Feature.PULL, what)


def check_unsigned(what: str) -> None:
    """Refuses models that nobody has signed where the site forbids these.

    Args:
        what: the models, for the error.

    Raises:
        UsageError: they are forbidden.
    """
    read_site().limits.refuse(Feature.UNSIGNED, what)


def check_transcript(what: str) -> None:
    """Refuses to write a conversation down where the site forbids that.

    Args:
        what: the command that asks, for the error.

    Raises:
        UsageError: it is forbidden.
    """
    read_site().limits.refuse(Feature.TRANSCRIPTS, what)


def signed(bundle: Bundle) -> Bundle:
    """A bundle with its signer: the key that vouched at import, or one that is trusted now.

    A notice tells of a key that is not trusted.

    Raises:
        ModelError: the signature is damaged, or does not fit the manifest.
    """
    if not bundle.may_be_signed:
        return bundle
    from capt_local.bundles.sign import signer_of

    found = signer_of(bundle, trusted)
    if found.untrusted:
        told = (
            f"The bundle {bundle.id} is signed with a key that is not trusted here "
            f"({found.untrusted})."
        )
        bundle = dataclasses.replace(bundle, notices=(*bundle.notices, told))
    return dataclasses.replace(bundle, signer=found.signer)


def permitted(bundle: Bundle, check: Check = Check.CACHED) -> Bundle:
    """The same, where the site lets the bundle be used.

    Where unsigned bundles are forbidden, one of the site's own keys has to have signed it: a key
    that a user trusts would lift the limit. The demo that came with the program is as good as that.

    Args:
        bundle: read from its manifest.
        check: how its digests will be checked; a signature of digests that nobody looks at is none.

    Raises:
        UsageError: the site forbids it.
        ModelError: see `signed`.
    """
    from capt_local.bundles.sign import signer_of
    from capt_local.bundles.store import is_packaged

    limits = read_site().limits
    if limits.forbids(Feature.UNSIGNED):
        if check is Check.NEVER:
            limits.refuse(Feature.UNSIGNED, "--verify never")
        if not is_packaged(bundle):
            found = signer_of(bundle, trusted_by_the_site, receipts=False)
            if found.signer is None:
                limits.refuse(Feature.UNSIGNED, "A bundle that no key of the site has signed")
            bundle = dataclasses.replace(bundle, signer=found.signer)
        # The cache of digests is a file of the user, who could write another one.
        return dataclasses.replace(bundle, read_digests=True)
    return signed(bundle)


def spoken_signer(bundle: Bundle) -> str:
    """Who has signed a bundle, for people."""
    from capt_local.bundles.store import is_packaged

    if bundle.signer is not None:
        return str(bundle.signer)
    if is_packaged(bundle):
        return "nobody; it came with the program"
    return "nobody trusted here" if bundle.may_be_signed else "nobody: it is unsigned"


def trusted() -> Mapping[str, TrustedKey]:
    """The keys that are trusted here: the site's and the user's.

    Raises:
        ModelError: one is no key, or others than its owner may write it.
    """
    from capt_local.bundles.sign import trusted_keys

    return trusted_keys(key_folders())


def trusted_by_the_site() -> Mapping[str, TrustedKey]:
    """The site's keys alone.

    Raises:
        ModelError: see `trusted`.
    """
    from capt_local.bundles.sign import trusted_keys

    return trusted_keys(key_folders()[:1])
