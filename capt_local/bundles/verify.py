"""Compares the files of a bundle with the digests of its manifest.

Computed digests are cached by path and stamp in a private file of the user, so that a start does
not hash 15 GB again. The cache is used only for files of installed bundles that no other account
may write, in folders that no other account may write, and only if no other account can have written
the cache file itself. In any doubt the file is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from platformdirs import user_state_dir

from capt_local.bundles.manifest import AttachedFile, Bundle, Digest, ModelFile
from capt_local.bundles.store import is_installed
from capt_local.errors import ModelError
from capt_local.line_file import put
from capt_local.strict_json import (
    ParseError,
    Stamp,
    convert,
    make_private_folder,
    open_regular,
    others_may_write,
    parse_object,
    read_regular,
    stamp_of,
)

Progress = Callable[[str, float], None]
LARGEST_TEMPLATE = 1 << 20
_CHUNK = 1 << 20


class Check(StrEnum):
    """How the digests of a bundle are checked.

    `cached` reads a file of an installed bundle once and then only if it has changed; files of
    other bundles are read each time.
    """

    ALWAYS = "always"
    CACHED = "cached"
    NEVER = "never"


class Verified(StrEnum):
    """How a file was verified at a start, for provenance."""

    READ = "read now"
    CACHED = "unchanged since its digest was computed"


@dataclass(frozen=True, slots=True)
class Verification:
    """The files that were checked: what is known of each, and stamps that show later changes."""

    stamps: dict[Path, Stamp] = field(default_factory=dict)
    how: dict[Path, Verified] = field(default_factory=dict)


def verify(
    bundle: Bundle, progress: Progress | None = None, check: Check = Check.ALWAYS
) -> Verification:
    """Checks the size and digest of each file of a bundle, reading it once.

    Models without a digest (given by their paths) are left out: `Bundle.notices` says so. Under
    `Check.NEVER` nothing is read. `progress` is called with a role and the share that is read.

    Raises:
        ModelError: a file is missing, unreadable or not the one in the manifest; names its role.
    """
    if check is Check.NEVER:
        return Verification()
    cached = check is Check.CACHED and not bundle.always_hash and is_installed(bundle)
    done, cache = Verification(), DigestCache() if cached else None
    for what, file in bundle.files:
        if file.sha256 is not None:
            _check(what, file, done, cache, progress and partial(progress, what))
        if isinstance(file, ModelFile) and file.template_file is not None:
            read_template(file)
    return done


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises ModelError: it cannot be read."""
    try:
        with open_regular(path) as stream:
            return hashed(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or 'unreadable'}.") from None


class Readable(Protocol):
    """A file, or a member of an archive."""

    def read(self, count: int, /) -> bytes: ...


def hashed(
    stream: Readable,
    size: int,
    report: Callable[[float], None] | None = None,
    out: BinaryIO | None = None,
) -> str:
    """SHA-256 of the next bytes of a stream, which are also copied to `out` if given.

    Args:
        stream: of the file.
        size: bytes; a file that grows is not read beyond, of one that is shorter there are fewer.
        report: called with the share that is read, 0 to 1.
        out: takes the bytes.
    """
    digest, done = hashlib.sha256(), 0
    while chunk := stream.read(min(_CHUNK, size - done)):
        digest.update(chunk)
        done += len(chunk)
        if out is not None:
            out.write(chunk)
        if report is not None:
            report(done / size)
    return digest.hexdigest()


def read_template(model: ModelFile) -> str:
    """The chat template that lies beside a model, checked against its digest.

    Raises:
        ModelError: it is missing, not UTF-8, or not the one that the manifest names.
    """
    path = model.template_file
    if path is None:
        raise ValueError(f"the {model.role} has no template file")
    try:
        data = read_regular(path, LARGEST_TEMPLATE + 1)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"The {model.role}'s template {path.name}: {reason}.") from None
    check_template(model, data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"The {model.role}'s template {path.name} is not UTF-8.") from None


def check_template(model: ModelFile, template: bytes) -> None:
    """Compares a template with the digest in the manifest, if there is one.

    Raises:
        ModelError: it is another one.
    """
    pinned = model.template_sha256
    if pinned is not None and hashlib.sha256(template).hexdigest() != pinned:
        raise ModelError(
            f"The chat template of the {model.role} is not the one that the bundle names: "
            "its SHA-256 differs. Get the bundle again from its source."
        )


def _check(
    what: str,
    file: AttachedFile,
    done: Verification,
    cache: DigestCache | None,
    report: Callable[[float], None] | None,
) -> None:
    """Compares size and digest of a file with those of the manifest; each file is read once."""
    path, problem = file.path, ""
    what += " model" if isinstance(file, ModelFile) else ""
    stamp = done.stamps.get(path)
    try:
        if stamp is None:
            with open_regular(path) as stream:
                stamp = stamp_of(os.fstat(stream.fileno()))
                if stamp[2] == file.size:
                    digest = cache.find(path, stamp) if cache else None
                    done.how[path] = Verified.CACHED if digest else Verified.READ
                    if digest is None:
                        digest = hashed(stream, file.size, report)
                        if stamp_of(os.fstat(stream.fileno())) != stamp:
                            raise ModelError(f"The {what} {path.name} changed while it was read.")
                        if cache and digest == file.sha256:
                            cache.store(path, stamp, digest)
                    stamp = done.stamps[path] = stamp.with_digest(digest)
        if stamp[2] != file.size:
            problem = f"it has {stamp[2]} bytes instead of {file.size}"
        elif stamp.sha256 != file.sha256:
            problem = "its SHA-256 differs"
    except OSError as error:
        problem = error.strerror or "it is unreadable"
    if problem:
        raise ModelError(
            f"The {what} {path.name} is not the file that the bundle names: {problem}. "
            "Get the bundle again from its source."
        )


class BackgroundDigests:
    """SHA-256 of files that no manifest pins, computed in a thread while the models load.

    A file that no longer matches its stamp has no digest.
    """

    def __init__(
        self,
        files: Iterable[AttachedFile],
        stamps: Mapping[Path, Stamp] | None = None,
    ) -> None:
        self._stamps = dict(stamps or {})
        self._digests: dict[Path, str | None] = {}
        wanted = [file.path for file in files if file.sha256 is None]
        # A daemon thread: a process that needs no provenance does not wait for it.
        self._thread = threading.Thread(target=self._compute, args=(wanted,), daemon=True)
        if wanted:
            self._thread.start()

    def of(self, file: AttachedFile) -> str | None:
        """The digest of a file, waiting for it; None where it could not be read, or changed."""
        if file.sha256 is None and self._thread.ident is not None:
            self._thread.join()
        return file.sha256 or self._digests.get(file.path)

    def _compute(self, paths: list[Path]) -> None:
        for path in dict.fromkeys(paths):
            known = self._stamps.get(path)
            if known is not None and known.sha256 is not None:  # of the copy that is loaded
                self._digests[path] = known.sha256
                continue
            try:
                with open_regular(path) as stream:
                    before = stamp_of(os.fstat(stream.fileno()))
                    digest = hashed(stream, before[2])
                    same = stamp_of(os.fstat(stream.fileno())) == before
                self._digests[path] = digest if same and known in (None, before) else None
            except OSError:
                self._digests[path] = None


# --- digests that were computed before ------------------------------------------------------------

_FILE = "digests.json"
_MOST = 256  # entries; the oldest go first
_LARGEST = 1 << 20
_SETTLED = 2_000_000_000  # ns: a file changed more recently may change again unnoticed
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ANY_OTHER = stat.S_IRWXG | stat.S_IRWXO


def state_folder() -> Path:
    """The folder for state of the program, such as cached digests; it need not exist."""
    return Path(user_state_dir("capt-local", appauthor=False))


class DigestCache:
    """Digests by file; read once, written when one is added."""

    def __init__(self) -> None:
        self._place = state_folder() / _FILE
        self._entries = self._read()

    def find(self, path: Path, stamp: Stamp, about: str = "") -> str | None:
        """The digest of a file, if it is known and the file may be trusted to be the same.

        `about` names another digest that is stored for the file, instead of its own.
        """
        return self._entries.get(_key(path, stamp, about)) if is_private(path) else None

    def store(self, path: Path, stamp: Stamp, digest: str, about: str = "") -> None:
        """Stores a digest that was just computed; does nothing where that is not possible."""
        if not is_private(path) or time.time_ns() - stamp[4] < _SETTLED:
            return
        # Another process may have added some meanwhile.
        entries = self._read()
        key = _key(path, stamp, about)
        entries.pop(key, None)
        entries[key] = digest
        self._entries = dict(list(entries.items())[-_MOST:])
        with contextlib.suppress(OSError):
            make_private_folder(self._place.parent)
            if _ours(os.lstat(self._place.parent), _OTHERS_WRITE):
                # Two processes that write at once may leave a torn file, which is then ignored.
                put(self._place, json.dumps(self._entries).encode())

    def _read(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ParseError, ValueError):
            if not _ours(os.lstat(self._place.parent), _OTHERS_WRITE):
                return {}
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(self._place, flags), "rb") as file:
                found = os.fstat(file.fileno())
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and _ours(found, _ANY_OTHER):
                    return convert(parse_object(file.read(_LARGEST)), dict[str, Digest])
        return {}


def is_private(path: Path) -> bool:
    """Whether only this user and root may change or replace a file."""
    with contextlib.suppress(OSError):
        real = path.resolve()
        return not any(others_may_write(os.lstat(one)) for one in (real, real.parent))
    return False


def _ours(found: os.stat_result, forbidden: int) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & forbidden


def _key(path: Path, stamp: Stamp, about: str) -> str:
    # Entries with `about` do not depend on the path: they stay valid if the bundle is moved.
    return about + ":".join(map(str, stamp)) + ("" if about else f":{path.resolve()}")
