"""A bundle as one file: a plain tar of stored members in one order, read without mercy.

The signed manifest says which members there are, how they are called and how long they are. So the
reader knows every byte of every header beforehand and takes no other: no link, no folder, no
device, no other name or order, nothing behind the end. Any tar program reads such an archive.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from capt_local.bundles.manifest import MANIFEST, NAME, RECEIPT, SIGNATURE, Bundle, PackageFile
from capt_local.bundles.store import RESERVED
from capt_local.bundles.verify import LARGEST_TEMPLATE
from capt_local.errors import ModelError
from capt_local.strict_json import open_regular

BLOCK = 512
_SMALL = 8 << 30  # from here on, a size does not fit into octal digits
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
    b"5": "a folder", b"6": "a pipe", b"L": "a long name", b"K": "a long name",
    b"x": "an extended header", b"g": "an extended header", b"S": "a sparse file",
}  # fmt: skip
_JUNK = {".ds_store", "thumbs.db", "desktop.ini"}


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
    for role, model in bundle.models.items():
        adapter, template = model.adapter, model.template_file
        named: list[tuple[Path, PackageFile | None, int | None, str | None]]
        named = [(model.path, model.package, model.size, model.sha256)]
        if adapter is not None:
            named.append((adapter.path, adapter.package, adapter.size, adapter.sha256))
        if template is not None:
            named.append((template, None, None, model.template_sha256))
        for path, package, size, digest in named:
            name = package.name if package else path.relative_to(folder).as_posix()
            member = Member(_plain(name, role), size, digest or "", path)
            if found.setdefault(member.name.casefold(), member) != member:
                raise ModelError(f"The bundle names {member.name} in two ways, which differ.")
    _refuse_twins(bundle)
    return tuple(found.values())


def _plain(name: str, role: str) -> str:
    own = name.casefold() in (MANIFEST, SIGNATURE, RECEIPT)
    if not NAME.fullmatch(name) or name.endswith(".") or RESERVED.fullmatch(name) or own:
        raise ModelError(
            f"A file of the {role} has a name that cannot travel. Files of a bundle that travels "
            "lie beside its manifest, with names of letters, digits, '.', '-' and '_'."
        )
    return name


def _refuse_twins(bundle: Bundle) -> None:
    """An expert that is its own base has nothing to say, and is a mistake of whoever made it."""
    for role, expert in bundle.models.items():
        base = bundle.models.get(role.replace("expert", "base"))
        if not role.startswith("expert") or base is None or expert.sha256 != base.sha256:
            continue
        pair = [one.adapter and (one.adapter.sha256, one.adapter.scale) for one in (expert, base)]
        if pair[0] == pair[1]:
            raise ModelError(
                f"The {role} and its base are the same model, so nothing is contrasted."
            )


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

    def end(self, names: set[str]) -> None:
        """Behind the last file, whose names were these.

        Raises:
            ModelError: there is more.
        """

    def close(self) -> None:
        """Lets go of it."""


def header(name: str, size: int) -> bytes:
    """The header of a member: ustar, mode 0600, nobody's, of no time."""
    length = f"{size:011o}\0".encode() if size < _SMALL else b"\x80" + size.to_bytes(11, "big")
    front = name.encode("ascii").ljust(100, b"\0") + b"0000600\0" + b"0000000\0" * 2
    behind = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    block = front + length + b"0" * 11 + b"\0" + b" " * 8 + behind
    checksum = f"{sum(block):06o}\0 ".encode()
    return block[:148] + checksum + block[156:]


def padding(size: int) -> bytes:
    """What stands between a member and the next header."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)


class ArchiveSource:
    """A bundle in one file.

    Raises:
        ModelError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens it."""
        self._name = path.name
        self._stream = open_file(path)
        self._left = b""

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `BundleSource.begin`."""
        if self._exactly(len(self._left)) != self._left:
            raise self._damaged("there is something between two members")
        block = self._exactly(BLOCK)
        found = _size(block) if size is None else size
        if found is None or found > most or block != header(name, found):
            raise self._damaged(_why(block, name, size))
        self._left = padding(found)
        return found

    def read(self, count: int) -> bytes:
        """See `BundleSource.read`."""
        with _readable(self._name):
            return self._stream.read(count)

    def skip(self, count: int) -> None:
        """See `BundleSource.skip`."""
        with _readable(self._name):
            self._stream.seek(count, os.SEEK_CUR)

    def end(self, names: set[str]) -> None:
        """See `BundleSource.end`."""
        if self._exactly(len(self._left)) != self._left or self._exactly(len(END)) != END:
            raise self._damaged("there is something behind the last file of the manifest")
        if self.read(1):
            raise self._damaged("there is something behind its end")

    def close(self) -> None:
        """See `BundleSource.close`."""
        self._stream.close()

    def _exactly(self, count: int) -> bytes:
        found = self.read(count)
        if len(found) < count:
            raise self._damaged("it is cut off")
        return found

    def _damaged(self, why: str) -> ModelError:
        return ModelError(f"{self._name} is no archive of a bundle that can be used: {why}.")


class FolderSource:
    """A bundle as a folder of plain files, as on a stick."""

    def __init__(self, folder: Path) -> None:
        """Remembers the folder."""
        self._folder = folder
        self._name = folder.name
        self._stream: BinaryIO | None = None

    def begin(self, name: str, size: int | None, most: int) -> int:
        """See `BundleSource.begin`."""
        self.close()
        self._name = name
        self._stream = open_file(self._folder / name)
        with _readable(name):
            found = os.fstat(self._stream.fileno()).st_size
        if found > most or size not in (None, found):
            raise ModelError(f"{name} has {found} bytes, which is not what the bundle says.")
        return found

    def read(self, count: int) -> bytes:
        """See `BundleSource.read`."""
        with _readable(self._name):
            return self._stream.read(count) if self._stream else b""

    def skip(self, count: int) -> None:
        """See `BundleSource.skip`."""
        with _readable(self._name):
            if self._stream:
                self._stream.seek(count, os.SEEK_CUR)

    def end(self, names: set[str]) -> None:
        """See `BundleSource.end`; what file managers leave behind is passed over."""
        with _readable(self._folder.name):
            found = os.listdir(self._folder)
        for each in found:
            if each not in names and each.lower() not in _JUNK and not each.startswith("._"):
                raise ModelError(
                    f"{self._folder.name} holds a file that the manifest does not name. "
                    "Take it out, or get the bundle again from its source."
                )

    def close(self) -> None:
        """See `BundleSource.close`."""
        if self._stream:
            self._stream.close()
            self._stream = None


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Tells errors of the system in reading a file, such as those of a stick that is pulled."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or "the disk fails"
        raise ModelError(
            f"{name} cannot be read any more: {reason}. What was copied stays: give the same "
            "command again to go on."
        ) from None


def open_source(path: Path) -> BundleSource:
    """A bundle that came from elsewhere: an archive or a folder.

    Raises:
        ModelError: it is not there, or is neither.
    """
    # Unlike `Path.is_dir`, this takes a name that is too long for one that is not there.
    return FolderSource(path) if os.path.isdir(path) else ArchiveSource(path)


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


def _size(block: bytes) -> int | None:
    """The size that a header claims, as far as `header` would write it."""
    digits = block[124:135]
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def _why(block: bytes, name: str, size: int | None) -> str:
    """What is wrong with a header; says nothing of what stands in it."""
    if block[257:262] != b"ustar":
        return f"where {name} should be there is no header of a file"
    if kind := _KINDS.get(block[156:157]):
        return f"where {name} should be there is {kind}"
    if block[:100].rstrip(b"\0") != name.encode():
        return f"where {name} should be there is another file"
    claimed = _size(block)
    if claimed is None or claimed != size:
        return f"{name} has another size than it may have"
    return f"the header of {name} is not as capt-local writes it"
