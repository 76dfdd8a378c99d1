"""Bundles on their way: export to one archive or a folder, import into the user's own store.

An import checks the signature first and is whole or not at all. Files are copied into a folder
beside the store and take their place there in one move, when every byte has been checked against
the manifest. What is there of an earlier try is read again and gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from capt_local.bundles import store
from capt_local.bundles.archive import (
    END,
    BundleSource,
    Member,
    header,
    members,
    open_file,
    open_source,
    padding,
)
from capt_local.bundles.manifest import MANIFEST, RECEIPT, SIGNATURE, Bundle, Signer
from capt_local.bundles.manifest_file import (
    LARGEST_MANIFEST,
    is_older,
    parse_manifest,
    read_bundle,
    version_numbers,
)
from capt_local.bundles.sign import (
    LARGEST_SIGNATURE,
    TRUST_IT,
    TrustedKey,
    check_signature,
    read_signature,
    receipt,
    sign,
)
from capt_local.bundles.staging import Staging, check_replaceable
from capt_local.bundles.store import check_id
from capt_local.bundles.verify import Check, verify
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import read_regular

Report = Callable[[str, float], None]
Examine = Callable[[Bundle], None]
CHUNK = 1 << 20
ENDING = ".capt"
_DRAFT = ".part"


def export(
    bundle: Bundle,
    place: Path,
    key: Ed25519PrivateKey | None = None,
    report: Report | None = None,
    *,
    unsigned: bool = False,
) -> Path:
    """Writes a bundle; each file is checked against the manifest as it is copied.

    Args:
        bundle: read from its manifest.
        place: a name that ends in .capt for an archive; otherwise a folder that is made.
        key: that signs; None keeps the signature that the bundle came with, if it has one.
        report: called with a file's name and the share of it that is written.
        unsigned: without a signature, also where the bundle came with one.

    Returns:
        What was written.

    Raises:
        UsageError: there is something of that name.
        ModelError: a file is not the one of the manifest, or the disk is too small or fails.
    """
    check_id(bundle)
    folder, files = bundle.folder, members(bundle)
    if folder is None:
        raise UsageError("Only a bundle with a manifest can be exported.")
    _refuse_present(place)
    manifest = _manifest(bundle, folder)
    signature = b""
    if not unsigned:
        signature = sign(manifest, key) if key else read_signature(folder)
    write = _write_archive if place.suffix == ENDING else _write_folder
    try:
        _check_room(place.parent, [each.source for each in files])
        with _draft(place) as draft:
            write(draft, manifest, signature, files, report)
            _refuse_present(place)  # which another program may have made meanwhile
            os.rename(draft, place)
    except OSError as error:
        raise ModelError(f"{place.name} cannot be written: {error.strerror}.") from None
    return place


@contextlib.contextmanager
def _draft(place: Path) -> Iterator[Path]:
    """A place on the same disk, in a folder that nobody has and that goes at the end."""
    with tempfile.TemporaryDirectory(
        prefix=f"{place.name}.", suffix=_DRAFT, dir=place.parent, ignore_cleanup_errors=True
    ) as made:
        yield Path(made, place.name)


def _refuse_present(place: Path) -> None:
    if os.path.lexists(place):
        raise UsageError(f"{place.name} is there already; nothing was written.")


def _manifest(bundle: Bundle, folder: Path) -> bytes:
    """The bytes of the manifest that was read, and of no other."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelError(f"{MANIFEST} cannot be read: {error.strerror}.") from None
    if hashlib.sha256(data).hexdigest() != bundle.manifest_sha256:
        raise ModelError(
            f"{MANIFEST} is not the manifest that was read, or changed since. Nothing was exported."
        )
    return data


def _check_room(folder: Path, files: list[Path]) -> None:
    needed = sum(file.stat().st_size for file in files) + CHUNK
    check_room(folder, needed)


def check_room(folder: Path, needed: int) -> None:
    """Says before anything is copied that a disk is too small.

    Args:
        folder: on the disk; it is there.
        needed: bytes.

    Raises:
        ModelError: it is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"There is not enough room in {folder}: {needed >> 20:,} MiB are needed and "
            f"{free >> 20:,} MiB are free. Nothing was copied."
        )


def _write_archive(
    draft: Path,
    manifest: bytes,
    signature: bytes,
    files: tuple[Member, ...],
    report: Report | None,
) -> None:
    with _new(draft) as out:
        for name, data in ((MANIFEST, manifest), (SIGNATURE, signature)):
            out.write(header(name, len(data)) + data + padding(len(data)))
        for member in files:
            size = member.source.stat().st_size
            out.write(header(member.name, size))
            for chunk in _checked(member, report):
                out.write(chunk)
            out.write(padding(size))
        out.write(END)
        out.flush()
        os.fsync(out.fileno())


def _write_folder(
    draft: Path,
    manifest: bytes,
    signature: bytes,
    files: tuple[Member, ...],
    report: Report | None,
) -> None:
    draft.mkdir(mode=0o700)
    for name, data in ((MANIFEST, manifest), (SIGNATURE, signature)):
        if data:
            with _new(draft / name) as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
    for member in files:
        with _new(draft / member.name) as out:
            for chunk in _checked(member, report):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())


def _new(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _checked(member: Member, report: Report | None) -> Iterator[bytes]:
    """The bytes of a file; at their end an error if they are not those of the manifest."""
    digest, done = hashlib.sha256(), 0
    with open_file(member.source.resolve()) as stream:
        size = os.fstat(stream.fileno()).st_size
        if member.size not in (None, size) or size > member.most:
            raise _other(member)
        while chunk := stream.read(min(CHUNK, size - done)):
            digest.update(chunk)
            done += len(chunk)
            yield chunk
            if report is not None:
                report(member.name, done / size)
    if done != size or digest.hexdigest() != member.sha256:
        raise _other(member)


def _other(member: Member) -> ModelError:
    return ModelError(
        f"{member.name} is not the file that the bundle names. Nothing was exported; get the "
        "bundle again from its source."
    )


@dataclass(frozen=True, slots=True)
class Terms:
    """What is accepted.

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
    source: BundleSource, terms: Terms, examine: Examine, report: Report | None = None
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
    with Staging(place) as staging:
        check_replaceable(place)
        if staging.is_installed(manifest, signature):
            if signer:
                staging.write_receipt(partial(receipt, signer), installed=True)
            return _again(read_bundle(place), signer)
        _check_version(bundle, place, terms)
        staging.begin(manifest, signature)
        there = sum(staging.length(each.name) for each in files)
        check_room(staging.folder, sum(each.most for each in files) - there + CHUNK)
        for member in files:
            _copy(source, member, staging, report)
        source.end({MANIFEST, SIGNATURE, RECEIPT, *(each.name for each in files)})
        examine(read_bundle(staging.folder))
        if signer:
            staging.write_receipt(partial(receipt, signer))
        staging.install()
    return Imported(_signed(read_bundle(place), signer), there)


def _again(bundle: Bundle, signer: TrustedKey | None) -> Imported:
    verify(bundle, check=Check.ALWAYS)
    return Imported(_signed(bundle, signer), fresh=False)


def _signed(bundle: Bundle, key: TrustedKey | None) -> Bundle:
    return replace(bundle, signer=Signer(key.fingerprint, key.name)) if key else bundle


def _whole(source: BundleSource, name: str, most: int) -> bytes:
    size = source.begin(name, None, most)
    data = source.read(size)
    if len(data) < size:
        raise ModelError(f"{name} is cut off. Get the bundle again from its source.")
    return data


def _signature(source: BundleSource) -> bytes:
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
        data = read_regular(place / MANIFEST, LARGEST_MANIFEST + 1)
    except OSError as error:
        raise ModelError(f"{place / MANIFEST} cannot be read: {error.strerror}.") from None
    here = parse_manifest(data, place / MANIFEST, present=False)
    # The same manifest again mends a signature that is gone.
    if here.manifest_sha256 == bundle.manifest_sha256 or is_older(here.version, bundle.version):
        return
    comparable = (
        version_numbers(here.version) is not None and version_numbers(bundle.version) is not None
    )
    why = "which is not newer" if comparable else "and the two cannot be compared"
    raise ModelError(
        f"The bundle {bundle.id} is installed with version {here.version or 'unknown'}; this one "
        f"has {bundle.version or 'none'}, {why}. --allow-older takes it all the same."
    )


def _copy(source: BundleSource, member: Member, staging: Staging, report: Report | None) -> None:
    """Copies a file, or the rest of it, and checks all of it against the manifest."""
    size = source.begin(member.name, member.size, member.most)
    digest = hashlib.sha256()
    # A source tells by itself what fails in reading it, so all else is the store's.
    with staging.guarded(), staging.part(member.name, size) as part:
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
        staging.drop(member.name)
        raise ModelError(
            f"{member.name} is not the file that the manifest names: its SHA-256 differs. The "
            "store is what it was; get the bundle again from its source."
        )


def _next(source: BundleSource, member: Member, count: int) -> bytes:
    chunk = source.read(count)
    if not chunk:
        raise ModelError(
            f"{member.name} is cut off. What was copied stays: with the whole file, give the "
            "same command again to go on."
        )
    return chunk
