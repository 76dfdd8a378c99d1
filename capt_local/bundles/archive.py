"""The archive of a bundle: an uncompressed tar with a fixed order of members, read strictly.

The signed manifest determines names, order and sizes of the members. So the reader knows every byte
of every header in advance and accepts nothing else: no links, folders or devices, no other names or
order, no trailing data. Any tar program reads such an archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from capt_local.bundles.manifest import (
    MANIFEST,
    NAME,
    RECEIPT,
    SIGNATURE,
    AttachedFile,
    Bundle,
    ModelFile,
    read_manifest,
)
from capt_local.bundles.sign import read_signature, sign
from capt_local.bundles.store import RESERVED, check_id
from capt_local.bundles.verify import LARGEST_TEMPLATE, Progress, hashed
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import open_regular

ENDING = ".capt"
CHUNK = 1 << 20
BLOCK = 512
END = bytes(2 * BLOCK)
_MARK = b"ustar"
_SMALL = 8 << 30  # from here on, a size does not fit into octal digits


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str  # in the folder and in an archive
    size: int | None  # bytes; None for a template, of which the manifest has the digest alone
    sha256: str
    source: Path  # its present path

    @property
    def most(self) -> int:
        """Its maximum size in bytes."""
        return LARGEST_TEMPLATE if self.size is None else self.size


def members(bundle: Bundle) -> tuple[Member, ...]:
    """The files that a manifest names besides itself, each once, in the order of the roles.

    Raises:
        ModelError: a name is not plain, a file is named in two ways, or an expert is its base.
    """
    found: dict[str, Member] = {}

    def add(what: str, path: Path, sha256: str | None, file: AttachedFile | None = None) -> None:
        """A file of the bundle, or without one a template, of which the size is not known."""
        package = file.package if file else None
        name = package.name if package else path.relative_to(bundle.folder or Path()).as_posix()
        own = name.casefold() in (MANIFEST, SIGNATURE, RECEIPT)
        if not NAME.fullmatch(name) or name.endswith(".") or RESERVED.fullmatch(name) or own:
            raise ModelError(
                f"A file of the {what} has a name that cannot travel. Files of a bundle that "
                "travels lie beside its manifest, with names of letters, digits, '.', '-' and '_'."
            )
        member = Member(name, file.size if file else None, sha256 or "", path)
        if found.setdefault(name.casefold(), member) != member:
            raise ModelError(f"The bundle names {name} in two ways, which differ.")

    for what, file in bundle.files:
        add(what, file.path, file.sha256, file)
        if isinstance(file, ModelFile) and file.template_file is not None:
            add(what, file.template_file, file.template_sha256)
    for expert, base in bundle.pair_roles:
        one, other = (
            (model.sha256, [(adapter.sha256, adapter.scale) for adapter in model.adapters])
            for model in (bundle.models[expert], bundle.models[base])
        )
        if one == other:
            raise ModelError(
                f"The {expert} and its base are the same model, so nothing is contrasted."
            )
    return tuple(found.values())


def header(name: str, size: int) -> bytes:
    """The ustar header of a member: mode 0600; owner, group and time are 0."""
    length = f"{size:011o}\0".encode() if size < _SMALL else b"\x80" + size.to_bytes(11, "big")
    front = name.encode("ascii").ljust(100, b"\0") + b"0000600\0" + b"0000000\0" * 2
    behind = b"0" + bytes(100) + _MARK + b"\x0000" + bytes(247)
    block = front + length + b"0" * 11 + b"\0" + b" " * 8 + behind
    checksum = f"{sum(block):06o}\0 ".encode()
    return block[:148] + checksum + block[156:]


def padding(size: int) -> bytes:
    """The zero bytes that fill the last block of a member."""
    return bytes(-size % BLOCK)


def export(
    bundle: Bundle,
    place: Path,
    key: Ed25519PrivateKey | None = None,
    report: Progress | None = None,
    *,
    unsigned: bool = False,
) -> Path:
    """Writes a bundle as an archive; each file is checked against the manifest as it is copied.

    Args:
        bundle: read from its manifest.
        place: a name that ends in .capt.
        key: that signs; None keeps the signature that the bundle came with, if it has one.
        report: called with a file's name and the share of it that is written.
        unsigned: without a signature, also where the bundle came with one.

    Raises:
        UsageError: there is something of that name, or it has another ending.
        ModelError: a file is not the one of the manifest, or the disk is too small or fails.
    """
    check_id(bundle)
    folder, files = bundle.folder, members(bundle)
    if folder is None:
        raise UsageError("Only a bundle with a manifest can be exported.")
    if place.suffix != ENDING:
        raise UsageError(f"The name of an archive of a bundle ends in {ENDING}.")
    _refuse_present(place)
    manifest = read_manifest(folder / MANIFEST)
    if hashlib.sha256(manifest).hexdigest() != bundle.manifest_sha256:
        raise ModelError(
            f"{MANIFEST} is not the manifest that was read, or changed since. Nothing was exported."
        )
    signature = b""
    if not unsigned:
        signature = sign(manifest, key) if key else read_signature(folder)
    try:
        check_space(place.parent, sum(each.source.stat().st_size for each in files) + CHUNK)
        # In a temporary folder on the same disk, deleted at the end.
        with tempfile.TemporaryDirectory(
            prefix=f"{place.name}.", suffix=".part", dir=place.parent, ignore_cleanup_errors=True
        ) as draft:
            made = Path(draft, place.name)
            with new_file(made) as out:
                for name, data in ((MANIFEST, manifest), (SIGNATURE, signature)):
                    out.write(header(name, len(data)) + data + padding(len(data)))
                for member in files:
                    _write(member, out, report)
                out.write(END)
                out.flush()
                os.fsync(out.fileno())
            _refuse_present(place)  # which another program may have made meanwhile
            os.rename(made, place)
    except OSError as error:
        raise ModelError(f"{place.name} cannot be written: {error.strerror}.") from None
    return place


def _write(member: Member, out: BinaryIO, report: Progress | None) -> None:
    with open_file(member.source.resolve()) as stream:
        size = os.fstat(stream.fileno()).st_size
        out.write(header(member.name, size))
        digest = hashed(stream, size, report and partial(report, member.name), out)
        out.write(padding(size))
    if member.size not in (None, size) or size > member.most or digest != member.sha256:
        raise ModelError(
            f"{member.name} is not the file that the bundle names. Nothing was exported; get the "
            "bundle again from its source."
        )


def _refuse_present(place: Path) -> None:
    if os.path.lexists(place):
        raise UsageError(f"{place.name} is there already; nothing was written.")


def check_space(folder: Path, needed: int) -> None:
    """Raises ModelError before anything is copied, if the disk has too few bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"There is not enough room in {folder}: {needed >> 20:,} MiB are needed and "
            f"{free >> 20:,} MiB are free. Nothing was copied."
        )


def new_file(path: Path) -> BinaryIO:
    """Creates a file of mode 0600 for writing; never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading; ModelError for a link, a pipe or a device."""
    try:
        return open_regular(path, follow=False)
    except FileNotFoundError:
        raise ModelError(f"{path.name} is not there.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


class Archive:
    """Reads the members of an archive in their order. Use it as a context manager.

    Each method raises a ModelError where the archive is damaged or its disk fails.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._stream = open_file(path)
        self._left = b""
        self._began = False

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def begin(self, name: str, size: int | None, most: int) -> int:
        """Goes to the next member, of this name and size (None: any up to `most`); its size."""
        if not self._began:
            block, self._began = self._some(BLOCK), True
            if block[257:262] != _MARK or len(block) < BLOCK:
                raise ModelError(
                    f"{self._name} is no archive of a bundle; 'capt-local models export' makes one."
                )
        else:
            if self.read(len(self._left)) != self._left:
                raise self._damaged("there is something between two members")
            block = self.read(BLOCK)
        found = _size(block) if size is None else size
        if found is None or found > most or block != header(name, found):
            raise self._damaged(
                f"where {name} should be there is another file, or one of another kind or size"
            )
        self._left = padding(found)
        return found

    def whole(self, name: str, most: int) -> bytes:
        return self.read(self.begin(name, None, most))

    def read(self, count: int) -> bytes:
        found = self._some(count)
        if len(found) < count:
            raise self._damaged("it is cut off")
        return found

    def skip(self, count: int) -> None:
        with self._readable():
            self._stream.seek(count, os.SEEK_CUR)

    def end(self) -> None:
        """Refuses data after the last member."""
        if self.read(len(self._left)) != self._left or self.read(len(END)) != END:
            raise self._damaged("there is something behind the last file of the manifest")
        if self._some(1):
            raise self._damaged("there is something behind its end")

    def _some(self, count: int) -> bytes:
        with self._readable():
            return self._stream.read(count)

    def _damaged(self, why: str) -> ModelError:
        return ModelError(
            f"The archive {self._name} is damaged: {why}. Get it again from its source."
        )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Converts an OSError in reading, such as of an unplugged stick, to a ModelError."""
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"{self._name} cannot be read any more: {error.strerror or 'the disk fails'}. "
                "Nothing was installed."
            ) from None


def _size(block: bytes) -> int | None:
    """The size that a header claims, as far as `header` would write it."""
    digits = block[124:135]
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None
