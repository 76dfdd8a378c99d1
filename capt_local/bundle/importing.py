"""Taking in a bundle that came from elsewhere: signature first, whole or not at all.

Files are copied into a folder of their own beside the store and take their place there in one
move, when every byte has been held against the manifest. What is there of an earlier try is read
again and gone on with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.archive import Source, open_source
from capt_local.bundle.check import Check
from capt_local.bundle.exporting import CHUNK, Report, check_room
from capt_local.bundle.incoming import Incoming, check_replaceable
from capt_local.bundle.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.bundle.members import Member, check_id, members
from capt_local.bundle.read import LARGEST_MANIFEST, parse_manifest, read_bundle
from capt_local.bundle.signer import receipt
from capt_local.bundle.signing import LARGEST_SIGNATURE, TRUST_IT, TrustedKey, check_signature
from capt_local.bundle.verify import verify
from capt_local.bundle.versions import is_older, numbers
from capt_local.errors import ModelError

Examine = Callable[[Bundle], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """What is taken in.

    Attributes:
        keys: that are trusted, by fingerprint.
        unsigned: whether a bundle without a signature is.
        older: whether one is that is not newer than the installed one.
        key_hint: what to do about a key that is not trusted.
        no_key_hint: what to do about a bundle that nobody has signed.
    """

    keys: Mapping[str, TrustedKey]
    unsigned: bool = False
    older: bool = False
    key_hint: str = TRUST_IT
    no_key_hint: str = (
        "Get a signed one, or take it on your own responsibility with --allow-unsigned."
    )


@dataclass(frozen=True, slots=True)
class Imported:
    """What has been done.

    Attributes:
        bundle: as it is installed, with its signer.
        resumed: bytes that were there of an earlier try.
        fresh: whether anything was changed; false if this very bundle was installed already.
    """

    bundle: Bundle
    resumed: int = 0
    fresh: bool = True


def import_bundle(
    path: Path, terms: Terms, examine: Examine, report: Report | None = None
) -> Imported:
    """Installs a bundle in the user's own store.

    Args:
        path: an archive, or a folder.
        terms: what is taken in.
        examine: looks into the models when they are copied; raises to refuse them.
        report: called with a file's name and the share of it that is copied.

    Raises:
        ModelError: it is not to be trusted, damaged, older, too large, or cannot be copied; the
            store is what it was.
    """
    source = open_source(path)
    try:
        return import_from(source, terms, examine, report)
    finally:
        source.close()


def import_from(
    source: Source, terms: Terms, examine: Examine, report: Report | None = None
) -> Imported:
    """The same for a source that is open already, wherever its bytes come from.

    Raises:
        ModelError: as `import_bundle`.
    """
    manifest = _whole(source, MANIFEST, LARGEST_MANIFEST)
    signature = _signature(source)
    signer = _signer(manifest, signature, terms)
    # Only now is it read: an unknown hand's manifest is not parsed.
    bundle = parse_manifest(manifest, Path(MANIFEST), present=False)
    check_id(bundle)
    files = members(bundle)
    place = store.user_folder() / bundle.id
    with Incoming(place) as incoming:
        check_replaceable(place)
        if incoming.is_installed(manifest, signature):
            if signer:
                incoming.vouch(partial(receipt, signer), installed=True)
            return _again(read_bundle(place), signer)
        _check_version(bundle, place, terms)
        incoming.begin(manifest, signature)
        there = sum(incoming.length(each.name) for each in files)
        check_room(incoming.folder, sum(each.most for each in files) - there + CHUNK)
        for member in files:
            _copy(source, member, incoming, report)
        source.end({MANIFEST, SIGNATURE, RECEIPT, *(each.name for each in files)})
        examine(read_bundle(incoming.folder))
        if signer:
            incoming.vouch(partial(receipt, signer))
        incoming.install()
    return Imported(_signed(read_bundle(place), signer), there)


def _again(bundle: Bundle, signer: TrustedKey | None) -> Imported:
    verify(bundle, check=Check.ALWAYS)
    return Imported(_signed(bundle, signer), fresh=False)


def _signed(bundle: Bundle, key: TrustedKey | None) -> Bundle:
    return replace(bundle, signer=Signer(key.fingerprint, key.name)) if key else bundle


def _whole(source: Source, name: str, most: int) -> bytes:
    size = source.begin(name, None, most)
    data = source.read(size)
    if len(data) < size:
        raise ModelError(f"{name} is cut off. Get the bundle again from its source.")
    return data


def _signature(source: Source) -> bytes:
    try:
        return _whole(source, SIGNATURE, LARGEST_SIGNATURE)
    except ModelError as error:
        if str(error) == f"{SIGNATURE} is not there.":  # in a folder; in an archive it is empty
            return b""
        raise


def _signer(manifest: bytes, signature: bytes, terms: Terms) -> TrustedKey | None:
    if signature:
        return terms.keys[check_signature(manifest, signature, terms.keys, terms.key_hint)]
    if terms.unsigned:
        return None
    raise ModelError(f"The bundle is not signed, so nobody knows who made it. {terms.no_key_hint}")


def _check_version(bundle: Bundle, place: Path, terms: Terms) -> None:
    """Never back to an older bundle, which may have faults that are known."""
    if terms.older or not (place / MANIFEST).is_file():
        return
    try:
        here = parse_manifest((place / MANIFEST).read_bytes(), place / MANIFEST, present=False)
    except OSError as error:
        raise ModelError(f"{place / MANIFEST} cannot be read: {error.strerror}.") from None
    if is_older(here.version, bundle.version):
        return
    comparable = numbers(here.version) is not None and numbers(bundle.version) is not None
    why = "which is not newer" if comparable else "and the two cannot be compared"
    raise ModelError(
        f"The bundle {bundle.id} is installed with version {here.version or 'unknown'}; this one "
        f"has {bundle.version or 'none'}, {why}. --allow-older takes it all the same."
    )


def _copy(source: Source, member: Member, incoming: Incoming, report: Report | None) -> None:
    """Copies a file, or the rest of it, and holds all of it against the manifest."""
    size = source.begin(member.name, member.size, member.most)
    digest = hashlib.sha256()
    # A source tells by itself what fails in reading it, so all else is the store's.
    with incoming.guarded(), incoming.part(member.name, size) as part:
        done = 0
        while chunk := part.read(CHUNK):  # of an earlier try
            digest.update(chunk)
            done += len(chunk)
        source.skip(done)
        while done < size:
            chunk = _next(source, member, min(CHUNK, size - done))
            part.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if report is not None:
                report(member.name, done / size)
        part.flush()
        os.fsync(part.fileno())
    if digest.hexdigest() != member.sha256:
        incoming.drop(member.name)
        raise ModelError(
            f"{member.name} is not the file that the manifest names: its SHA-256 differs. The "
            "store is what it was; get the bundle again from its source."
        )


def _next(source: Source, member: Member, count: int) -> bytes:
    chunk = source.read(count)
    if not chunk:
        raise ModelError(
            f"{member.name} is cut off. What was copied is kept: with the whole file, give the "
            "same command again to go on."
        )
    return chunk
