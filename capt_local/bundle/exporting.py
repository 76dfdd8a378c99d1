"""Writing a bundle for another machine: one archive, or a folder on a stick."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from capt_local.bundle.archive import END, header, open_regular, padding
from capt_local.bundle.manifest import MANIFEST, SIGNATURE, Bundle
from capt_local.bundle.members import Member, check_id, members
from capt_local.bundle.signing import LARGEST_SIGNATURE, sign
from capt_local.errors import ModelError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Report = Callable[[str, float], None]
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
    """Writes a bundle; each file is held against the manifest as it is copied.

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
        signature = sign(manifest, key) if key else kept_signature(folder)
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


def kept_signature(folder: Path) -> bytes:
    """The signature file of a bundle; empty if it has none."""
    try:
        with (folder / SIGNATURE).open("rb") as stream:
            return stream.read(LARGEST_SIGNATURE)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ModelError(f"{SIGNATURE} cannot be read: {error.strerror}.") from None


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
    with open_regular(member.source.resolve()) as stream:
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
