"""A bundle as one file: a plain tar of stored members in one order, read without mercy.

The signed manifest says which members there are, how they are called and how long they are. So the
reader knows every byte of every header beforehand and takes no other: no link, no folder, no
device, no other name or order, nothing behind the end. Any tar program reads such an archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from capt_local.bundles.manifest import (
    MANIFEST,
    NAME,
    RECEIPT,
    SIGNATURE,
    AttachedFile,
    Bundle,
    ModelFile,
    PackageFile,
    read_manifest,
)
from capt_local.bundles.sign import read_signature, sign
from capt_local.bundles.store import RESERVED, check_id
from capt_local.bundles.verify import LARGEST_TEMPLATE, hashed
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import open_regular

Report = Callable[[str, float], None]
ENDING = ".capt"
CHUNK = 1 << 20
BLOCK = 512
END = bytes(2 * BLOCK)
_MARK = b"ustar"
_SMALL = 8 << 30  # from here on, a size does not fit into octal digits


@dataclass(frozen=True, slots=True)
class Member:
    """One file.

    Attributes:
        name: in the folder and in an archive.
        size: bytes; None for a template, of which the manifest has the digest alone.
        sha256: digest in hexadecimal.
        source: where it lies now.
    """

    name: str
    size: int | None
    sha256: str
    source: Path

    @property
    def most(self) -> int:
        """Bytes that it may have."""
        return LARGEST_TEMPLATE if self.size is None else self.size


def members(bundle: Bundle) -> tuple[Member, ...]:
    """The files that a manifest names besides itself, each once, in the order of the roles.

    Raises:
        ModelError: a name is not plain, a file is named in two ways, or models are mixed up.
    """
    folder = bundle.folder or Path()
    found: dict[str, Member] = {}
    files: list[tuple[str, ModelFile | AttachedFile]]
    files = [*bundle.models.items(), *bundle.attached]
    for role, model in files:
        named: list[tuple[Path, PackageFile | None, int | None, str | None]]
        named = [(model.path, model.package, model.size, model.sha256)]
        if isinstance(model, ModelFile) and model.template_file is not None:
            named.append((model.template_file, None, None, model.template_sha256))
        for path, package, size, digest in named:
            name = package.name if package else path.relative_to(folder).as_posix()
            own = name.casefold() in (MANIFEST, SIGNATURE, RECEIPT)
            if not NAME.fullmatch(name) or name.endswith(".") or RESERVED.fullmatch(name) or own:
                raise ModelError(
                    f"A file of the {role} has a name that cannot travel. Files of a bundle that "
                    "travels lie beside its manifest, with names of letters, digits, '.', '-' "
                    "and '_'."
                )
            member = Member(name, size, digest or "", path)
            if found.setdefault(name.casefold(), member) != member:
                raise ModelError(f"The bundle names {name} in two ways, which differ.")
    for expert, model in bundle.models.items():
        base = bundle.models.get(expert.replace("expert", "base"))
        if not expert.startswith("expert") or base is None or model.sha256 != base.sha256:
            continue
        pair = [[(on.sha256, on.scale) for on in one.adapters] for one in (model, base)]
        if pair[0] == pair[1]:
            raise ModelError(
                f"The {expert} and its base are the same model, so nothing is contrasted."
            )
    return tuple(found.values())


def header(name: str, size: int) -> bytes:
    """The header of a member: ustar, mode 0600, nobody's, of no time."""
    length = f"{size:011o}\0".encode() if size < _SMALL else b"\x80" + size.to_bytes(11, "big")
    front = name.encode("ascii").ljust(100, b"\0") + b"0000600\0" + b"0000000\0" * 2
    behind = b"0" + bytes(100) + _MARK + b"\x0000" + bytes(247)
    block = front + length + b"0" * 11 + b"\0" + b" " * 8 + behind
    checksum = f"{sum(block):06o}\0 ".encode()
    return block[:148] + checksum + block[156:]


def padding(size: int) -> bytes:
    """What stands between a member and the next header."""
    return bytes(-size % BLOCK)


def export(
    bundle: Bundle,
    place: Path,
    key: Ed25519PrivateKey | None = None,
    report: Report | None = None,
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

    Returns:
        What was written.

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
        # On the same disk, in a folder that nobody has and that goes at the end.
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


def _write(member: Member, out: BinaryIO, report: Report | None) -> None:
    """Copies a file; at its end an error if it is not the one of the manifest."""
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


def new_file(path: Path) -> BinaryIO:
    """A file that is not there yet, for writing, of this user alone; never through a link.

    Raises:
        OSError: it is there, or cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600), "wb")


def open_file(path: Path) -> BinaryIO:
    """A regular file, for reading; no link, and nothing that would wait.

    Raises:
        ModelError: it is not there, or is another thing.
    """
    try:
        return open_regular(path, follow=False)
    except FileNotFoundError:
        raise ModelError(f"{path.name} is not there.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


class BundleSource(Protocol):
    """Where the files of a bundle come from, in their order.

    Each method raises a ModelError where the disk fails, so that no error of the system leaves it.
    """

    def begin(self, name: str, size: int | None, most: int) -> int:
        """Goes to the next file and returns its size.

        Args:
            name: that it must have.
            size: that it must have; None: any up to `most`.
            most: bytes.

        Raises:
            ModelError: it is not there, or is another thing.
        """

    def read(self, count: int) -> bytes:
        """The next bytes of the file; fewer only where the source ends."""

    def skip(self, count: int) -> None:
        """Goes on by so many bytes."""

    def end(self) -> None:
        """Behind the last file.

        Raises:
            ModelError: there is more.
        """

    def check(self, files: Iterable[Member]) -> None:
        """Whether the source has these files, none of which will be read.

        Raises:
            ModelError: it does not.
        """


class ArchiveSource:
    """A bundle in one file. Use it as a context manager.

    Raises:
        ModelError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._stream = open_file(path)
        self._left = b""
        self._began = False

    def __enter__(self) -> ArchiveSource:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._stream.close()

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `BundleSource.begin`."""
        if not self._began:
            block, self._began = self.read(BLOCK), True
            if block[257:262] != _MARK or len(block) < BLOCK:
                raise ModelError(
                    f"{self._name} is no archive of a bundle; 'capt-local models export' makes one."
                )
        else:
            if self._exactly(len(self._left)) != self._left:
                raise self._damaged("there is something between two members")
            block = self._exactly(BLOCK)
        found = _size(block) if size is None else size
        if found is None or found > most or block != header(name, found):
            raise self._damaged(
                f"where {name} should be there is another file, or one of another kind or size"
            )
        self._left = padding(found)
        return found

    def read(self, count: int) -> bytes:
        """See `BundleSource.read`."""
        with self._readable():
            return self._stream.read(count)

    def skip(self, count: int) -> None:
        """See `BundleSource.skip`."""
        with self._readable():
            self._stream.seek(count, os.SEEK_CUR)

    def end(self) -> None:
        """See `BundleSource.end`."""
        if self._exactly(len(self._left)) != self._left or self._exactly(len(END)) != END:
            raise self._damaged("there is something behind the last file of the manifest")
        if self.read(1):
            raise self._damaged("there is something behind its end")

    def check(self, files: Iterable[Member]) -> None:
        """See `BundleSource.check`."""
        for each in files:
            self.skip(self.begin(each.name, each.size, each.most))
        self.end()

    def _exactly(self, count: int) -> bytes:
        found = self.read(count)
        if len(found) < count:
            raise self._damaged("it is cut off")
        return found

    def _damaged(self, why: str) -> ModelError:
        return ModelError(
            f"The archive {self._name} is damaged: {why}. Get it again from its source."
        )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Tells errors of the system in reading, such as those of a stick that is pulled."""
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"{self._name} cannot be read any more: {error.strerror or 'the disk fails'}. What "
                "was copied stays: give the same command again to go on."
            ) from None


def _size(block: bytes) -> int | None:
    """The size that a header claims, as far as `header` would write it."""
    digits = block[124:135]
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None
