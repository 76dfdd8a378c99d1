"""Whether the files of a bundle are the ones that its manifest names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from capt_local.bundle.adapter import AdapterFile
from capt_local.bundle.check import Check
from capt_local.bundle.known import KnownDigests, known_digests
from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.bundle.store import is_installed
from capt_local.errors import ModelError
from capt_local.strict.stamp import Stamp, stamp_of

Progress = Callable[[str, float], None]
_CHUNK = 1 << 20


def verify(
    bundle: Bundle, progress: Progress | None = None, check: Check = Check.ALWAYS
) -> dict[Path, Stamp]:
    """Checks the size and digest of each file of a bundle.

    Models without a digest (given by their paths) are left out: `Bundle.notices` says so.

    Args:
        bundle: its files are read once, from beginning to end; also one that several models share.
        progress: called with a role and the share of its file that is read, 0 to 1.
        check: how.

    Returns:
        What tells that a file is still the one that was checked, by path.

    Raises:
        ModelError: a file is missing, unreadable or another one; names its role.
    """
    if check is Check.NEVER:
        return {}
    digests = _Digests(known_digests() if check is Check.CACHED and is_installed(bundle) else None)
    for role, model in bundle.models.items():
        report = None if progress is None else partial(progress, role)
        _check_file(f"{role} model", model, digests, report)
        if model.adapter is not None:
            _check_file(f"{role}'s adapter", model.adapter, digests, report)
        if model.template_file is not None:
            read_template(model)
    return digests.stamps


def file_digest(path: Path, size: int, report: Callable[[float], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal.

    Args:
        path: of the file.
        size: bytes expected, for the progress.
        report: called with the share that is read, 0 to 1.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            return _hashed(stream, size, report)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or 'unreadable'}.") from None


def _hashed(stream: BinaryIO, size: int, report: Callable[[float], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        if report is not None:
            report(min(done / size, 1.0) if size else 1.0)
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
        data = path.read_bytes()
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


class _Digests:
    """Digests and stamps of the files of one check, each read once."""

    def __init__(self, known: KnownDigests | None) -> None:
        self._known = known
        self._found: dict[Path, str] = {}
        self.stamps: dict[Path, Stamp] = {}

    def of(
        self, what: str, file: ModelFile | AdapterFile, report: Callable[[float], None] | None
    ) -> str:
        """The digest of a file that has the right size."""
        path = file.path
        if path in self._found and self.stamps[path][2] == file.size:
            return self._found[path]
        try:
            with path.open("rb", buffering=0) as stream:
                stamp = stamp_of(os.fstat(stream.fileno()))
                if stamp[2] != file.size:
                    raise _other(what, path, f"it has {stamp[2]} bytes instead of {file.size}")
                found = self._known.find(path, stamp) if self._known else None
                if found is None:
                    found = _hashed(stream, file.size, report)
                    if stamp_of(os.fstat(stream.fileno())) != stamp:
                        raise ModelError(f"The {what} {path.name} changed while it was read.")
                    if self._known and found == file.sha256:
                        self._known.keep(path, stamp, found)
        except OSError as error:
            raise _other(what, path, error.strerror or "it is unreadable") from None
        self._found[path], self.stamps[path] = found, stamp.with_digest(found)
        return found


def _check_file(
    what: str,
    file: ModelFile | AdapterFile,
    digests: _Digests,
    report: Callable[[float], None] | None,
) -> None:
    """Checks one file that has a digest."""
    if file.sha256 is not None and digests.of(what, file, report) != file.sha256:
        raise _other(what, file.path, "its SHA-256 differs")


def _other(what: str, path: Path, why: str) -> ModelError:
    return ModelError(
        f"The {what} {path.name} is not the file that the bundle names: {why}. "
        "Get the bundle again from its source."
    )
