"""Installing a bundle in the user's own store: whole or not at all.

A bundle is put together in a folder beside the store, on the same disk, and takes its place there
in one move, when every byte has been checked against the manifest. Only this user can write that
folder; a file is made only where there is none, and never through a link. What a stopped import
leaves there is read again and gone on with by the next import of the same bundle; whether one is at
work is known by its lock, which the kernel releases however a process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from capt_local.bundles import store
from capt_local.bundles.archive import (
    CHUNK,
    ArchiveSource,
    BundleSource,
    Member,
    Report,
    check_space,
    members,
    new_file,
)
from capt_local.bundles.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    NAME,
    RECEIPT,
    SIGNATURE,
    Bundle,
    Signer,
    is_older,
    parse_manifest,
    read_bundle,
    read_manifest,
    version_numbers,
)
from capt_local.bundles.sign import (
    LARGEST_SIGNATURE,
    TRUST_IT,
    TrustedKey,
    check_signature,
    receipt,
)
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError
from capt_local.strict_json import make_private_folder

Examine = Callable[[Bundle], None]
_OLD, _LOCK = ".old", ".lock"  # behind the name of a bundle
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


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
    """Installs the bundle of an archive.

    Args:
        path: of the archive.
        terms: what is accepted.
        examine: looks into the models when they are copied; raises to refuse them.
        report: called with a file's name and the share of it that is copied.

    Raises:
        ModelError: it is not to be trusted, damaged, older, too large, or cannot be copied; the
            store is what it was.
    """
    with ArchiveSource(path) as source:
        return import_from(source, terms, examine, report)


def import_from(
    source: BundleSource, terms: Terms, examine: Examine, report: Report | None = None
) -> Imported:
    """The same for a source that is open already, wherever its bytes come from.

    Raises:
        ModelError: as `import_bundle`.
    """
    manifest = _whole(source, MANIFEST, LARGEST_MANIFEST)
    signature = _whole(source, SIGNATURE, LARGEST_SIGNATURE)
    key: TrustedKey | None = None
    if signature:
        key = terms.keys[check_signature(manifest, signature, terms.keys, terms.key_hint)]
    elif not terms.unsigned:
        raise ModelError(
            f"The bundle is not signed, so nobody knows who made it. {terms.no_key_hint}"
        )
    # Only now is it read: an unknown hand's manifest is not parsed.
    bundle = parse_manifest(manifest, Path(MANIFEST), present=False)
    store.check_id(bundle)
    files = members(bundle)
    place = store.user_folder() / bundle.id
    signer = Signer(key.fingerprint, key.name) if key else None
    with Staging(place) as staging:
        check_replaceable(place)
        if staging.is_installed(manifest, signature):
            source.check(files)
            found = read_bundle(place)
            verify(found)
            if key:
                staging.write_receipt(place, key)
            return Imported(replace(found, signer=signer), fresh=False)
        _check_version(bundle, place, terms)
        staging.begin(manifest, signature)
        there = sum(staging.length(each.name) for each in files)
        check_space(staging.folder, sum(each.most for each in files) - there + CHUNK)
        for member in files:
            _copy(source, member, staging, report)
        source.end()
        examine(read_bundle(staging.folder))
        if key:
            staging.write_receipt(staging.folder, key)
        staging.install()
    return Imported(replace(read_bundle(place), signer=signer), there)


def _whole(source: BundleSource, name: str, most: int) -> bytes:
    size = source.begin(name, None, most)
    data = source.read(size)
    if len(data) < size:
        raise ModelError(f"{name} is cut off. Get the bundle again from its source.")
    return data


def _check_version(bundle: Bundle, place: Path, terms: Terms) -> None:
    """Never back to an older bundle, which may have faults that are known."""
    file = place / MANIFEST
    if terms.older or not file.is_file():
        return
    here = parse_manifest(read_manifest(file), file, present=False)
    # The same manifest again mends a signature that is gone.
    if here.manifest_sha256 == bundle.manifest_sha256 or is_older(here.version, bundle.version):
        return
    comparable = None not in (version_numbers(here.version), version_numbers(bundle.version))
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
            if not (chunk := source.read(min(CHUNK, size - done))):
                raise ModelError(
                    f"{member.name} is cut off. What was copied stays: with the whole file, give "
                    "the same command again to go on."
                )
            part.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if report is not None:
                report(member.name, done / size)
        part.flush()
        os.fsync(part.fileno())
    if digest.hexdigest() != member.sha256:
        with contextlib.suppress(OSError):
            (staging.folder / member.name).unlink()
        raise ModelError(
            f"{member.name} is not the file that the manifest names: its SHA-256 differs. The "
            "store is what it was; get the bundle again from its source."
        )


class Staging:
    """A bundle that is on its way into the store. Use it as a context manager.

    Args:
        place: in the user's own store, where the bundle will lie.

    Attributes:
        folder: where it is put together.

    Raises:
        ModelError: the store cannot be written, or the same bundle is being imported already.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        above = place.parent.parent / "incoming"
        self.folder = above / place.name
        self._old = above / f"{place.name}{_OLD}"
        with self.guarded():
            make_private_folder(place.parent)
            make_private_folder(above)
            self._lock = _lock(above, place.name)
            try:
                self._lock.acquire()
            except Timeout:
                raise ModelError(f"{place.name} is being imported already.") from None
            except NotImplementedError:
                raise OSError(0, "its file system has no locks") from None
            try:
                self._mend()
            except OSError:
                self._lock.release()
                raise

    def __enter__(self) -> Staging:
        """Itself, with the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the lock."""
        self._lock.release()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Tells errors of the system, in what is done with files of the folder, as the store's."""
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"The store {self._place.parent} cannot be written: {error.strerror}. What is "
                "installed there is what it was."
            ) from None

    def is_installed(self, manifest: bytes, signature: bytes) -> bool:
        """Whether this very bundle is in the store."""
        return (_bytes(self._place / MANIFEST), _bytes(self._place / SIGNATURE)) == (
            manifest,
            signature,
        )

    def begin(self, manifest: bytes, signature: bytes) -> None:
        """Goes on with what is there of the same bundle; what is there of another one goes."""
        with self.guarded():
            there = _bytes(self.folder / MANIFEST), _bytes(self.folder / SIGNATURE)
            if there != (manifest, signature) or self.folder.is_symlink():
                wipe(self.folder)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for name, data in ((SIGNATURE, signature), (MANIFEST, manifest)):
                if data and not (self.folder / name).exists():
                    _write(self.folder / name, data)

    def write_receipt(self, folder: Path, key: TrustedKey) -> None:
        """Writes down which key has signed the bundle, whose manifest is in its place now.

        Args:
            folder: that of the staging, or of the bundle that is installed already.
            key: that has signed.
        """
        place = folder / RECEIPT
        with self.guarded():
            data = receipt(key, folder / MANIFEST)
            if _bytes(place) != data:
                place.unlink(missing_ok=True)
                _write(place, data)

    def length(self, name: str) -> int:
        """Bytes that are there of a file."""
        try:
            return os.lstat(self.folder / name).st_size
        except OSError:
            return 0

    def part(self, name: str, size: int) -> BinaryIO:
        """A file to go on with, at its beginning; what is too long or no file is made anew."""
        place = self.folder / name
        with self.guarded():
            drop_odd(place, size)
            new = 0 if place.exists() else os.O_CREAT | os.O_EXCL
            return os.fdopen(os.open(place, os.O_RDWR | new | _SAFE, 0o600), "r+b")

    def install(self) -> None:
        """Lets the bundle take its place; the one that was there goes behind that."""
        check_replaceable(self._place)  # much time may have gone by
        with self.guarded():
            try:
                _sync(self.folder)
                if self._place.exists():
                    os.rename(self._place, self._old)
                os.rename(self.folder, self._place)
                for each in (self._place.parent, self.folder.parent):
                    _sync(each)
                if self._old.exists():
                    shutil.rmtree(self._old)
            except OSError:
                self._mend()
                raise

    def _mend(self) -> None:
        """After a power cut between two moves, the bundle that was there has its place again."""
        if os.path.lexists(self._old):
            if os.path.lexists(self._place):
                wipe(self._old)
            else:
                os.rename(self._old, self._place)


@contextlib.contextmanager
def new_staging(place: Path) -> Iterator[Staging]:
    """A new, empty folder for a bundle; what is left of it at the end, or of an earlier try, goes.

    Args:
        place: in the user's own store, where the bundle will lie.

    Raises:
        ModelError: the folder cannot be written, the same bundle is being made already, or an
            import of that id was stopped, whose files stay.
    """
    with Staging(place) as staging:
        # An import begins with the manifest, a making ends with it.
        if os.path.lexists(staging.folder / MANIFEST):
            raise ModelError(
                f"A stopped import or pull of {place.name} is there ({staging.folder}). Give its "
                "command again to go on with it, 'capt-local models clean --yes' to delete it, or "
                "another id."
            )
        try:
            with staging.guarded():
                wipe(staging.folder)
                staging.folder.mkdir(mode=0o700)
            yield staging
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)


def check_replaceable(place: Path) -> None:
    """Refuses a place in which something lies that is no bundle, such as a link to a folder.

    Raises:
        ModelError: it is such a place.
    """
    if os.path.lexists(place) and (place.is_symlink() or not os.path.isfile(place / MANIFEST)):
        raise ModelError(
            f"{place} is there already, and is no bundle. Nothing was made: move it away first."
        )


def drop_odd(place: Path, size: int) -> None:
    """Takes away what cannot be the beginning of a file of that size that was copied here."""
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(place)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > size:
            place.unlink()


def wipe(place: Path) -> None:
    """Deletes a file, a link, or a folder with all that it holds, if it is there."""
    if place.is_symlink() or not place.is_dir():
        place.unlink(missing_ok=True)
    else:
        shutil.rmtree(place)


def _bytes(place: Path) -> bytes:
    """Of a regular file of the store; nothing of what is another thing, or not there."""
    with contextlib.suppress(OSError), open(os.open(place, os.O_RDONLY | _SAFE), "rb") as stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream.read(LARGEST_MANIFEST + 1)
    return b""


def _write(place: Path, data: bytes) -> None:
    with new_file(place) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _lock(above: Path, name: str) -> FileLock:
    return FileLock(above / f"{name}{_LOCK}", timeout=0, mode=0o600)


def _sync(folder: Path) -> None:
    """Returns when the disk knows which files a folder holds."""
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        with contextlib.suppress(OSError):  # some file systems have no such thing
            os.fsync(handle)
    finally:
        os.close(handle)


def leftovers() -> dict[str, int]:
    """What stopped imports have left: bytes by the names of the bundles; changes nothing."""
    above, found = store.staging_folder(), dict[str, int]()
    with contextlib.suppress(OSError):
        for entry in sorted(above.iterdir()):
            name = entry.name.removesuffix(_OLD)
            if entry.name.endswith(_LOCK) or not NAME.fullmatch(name):
                continue
            if not _is_busy(above, name):
                files = [each for each in (entry, *entry.rglob("*")) if not each.is_dir()]
                size = sum(os.lstat(each).st_size for each in files)
                found[name] = found.get(name, 0) + size
    return found


def _is_busy(above: Path, name: str) -> bool:
    if os.path.lexists(above / f"{name}{_LOCK}"):
        try:
            with _lock(above, name):
                pass
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # a store that cannot be written
            pass
    return False


def clear(name: str) -> None:
    """Deletes what is left of one bundle; what a power cut took out of the store goes back there.

    Raises:
        ModelError: an import of it is at work, or it cannot be deleted.
    """
    with Staging(store.user_folder() / name) as staging, staging.guarded():
        wipe(staging.folder)
