"""Whether the files of a bundle are the ones that its manifest names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from capt_local.bundle.adapter import AdapterFile
from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.errors import ModelError

Progress = Callable[[str, float], None]
_CHUNK = 1 << 20


def verify(bundle: Bundle, progress: Progress | None = None) -> None:
    """Checks the size and digest of each file of a bundle.

    Models without a digest (given by their paths) are left out: `Bundle.notices` says so.

    Args:
        bundle: its files are read once, from beginning to end; also one that several models share.
        progress: called with a role and the share of its file that is read, 0 to 1.

    Raises:
        ModelError: a file is missing, unreadable or another one; names its role.
    """
    known: dict[Path, str] = {}
    for role, model in bundle.models.items():
        report = None if progress is None else partial(progress, role)
        _check_file(f"{role} model", model, known, report)
        if model.adapter is not None:
            _check_file(f"{role}'s adapter", model.adapter, known, report)
        if model.template_file is not None:
            read_template(model)


def file_digest(path: Path, size: int, report: Callable[[float], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal.

    Args:
        path: of the file.
        size: bytes expected, for the progress.
        report: called with the share that is read, 0 to 1.

    Raises:
        ModelError: it cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if report is not None:
                    report(min(done / size, 1.0) if size else 1.0)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or 'unreadable'}.") from None
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


def _check_file(
    what: str,
    file: ModelFile | AdapterFile,
    known: dict[Path, str],
    report: Callable[[float], None] | None,
) -> None:
    """Checks one file that has a digest, and reads it if it is not `known` yet."""
    if file.sha256 is None:
        return
    try:
        size = file.path.stat().st_size
    except OSError as error:
        raise _other(what, file.path, error.strerror or "it is unreadable") from None
    if size != file.size:
        raise _other(what, file.path, f"it has {size} bytes instead of {file.size}")
    if file.path not in known:
        known[file.path] = file_digest(file.path, file.size, report)
    if known[file.path] != file.sha256:
        raise _other(what, file.path, "its SHA-256 differs")


def _other(what: str, path: Path, why: str) -> ModelError:
    return ModelError(
        f"The {what} {path.name} is not the file that the bundle names: {why}. "
        "Get the bundle again from its source."
    )
