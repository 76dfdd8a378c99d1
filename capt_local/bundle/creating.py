"""Making a bundle of models that lie anywhere: their files in one folder, each with its digest.

A file is linked where only this user and root can change it, so that a bundle of files on the same
disk takes no room; any other is copied. What lies elsewhere stays there.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from capt_local.bundle.adapter import AdapterFile
from capt_local.bundle.archive import open_regular
from capt_local.bundle.exporting import CHUNK, check_room
from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.bundle.roles import Role
from capt_local.errors import ModelError
from capt_local.strict.stamp import Stamp, stamp_of

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Put:
    """A bundle whose files lie in one folder.

    Attributes:
        bundle: with their places, sizes and digests.
        linked: files that share their bytes with those that were given, by name.
        copied: files that were copied.
        stamps: of the files, as they were when their digests were taken.
    """

    bundle: Bundle
    linked: tuple[str, ...]
    copied: tuple[str, ...]
    stamps: Mapping[Path, Stamp]

    def check(self) -> None:
        """Whether the files are still those whose digests were taken.

        Raises:
            ModelError: one is not.
        """
        for path, stamp in self.stamps.items():
            try:
                same = stamp_of(os.stat(path)) == stamp
            except OSError:
                same = False
            if not same:
                raise _changed(path.name)


@dataclass(frozen=True, slots=True)
class _File:
    """One file on its way.

    Attributes:
        what: it is, for errors.
        source: where it lies.
        name: in the bundle.
    """

    what: str
    source: Path
    name: str


def put_together(
    wanted: Bundle,
    folder: Path,
    *,
    templates: Mapping[Role, bytes],
    copy: bool = False,
    report: Report | None = None,
) -> Put:
    """Brings the files of a bundle into an empty folder.

    Args:
        wanted: its models, wherever they lie; those with a digest have to have it.
        folder: empty, of this user alone.
        templates: chat templates that go beside the models, by role.
        copy: nothing is linked.
        report: called with the name of a file and the share of it that is read.

    Raises:
        ModelError: a file cannot be read or is not the right one, or there is too little room.
        OSError: the folder cannot be written.
    """
    files = _files(wanted)
    linked = {each.name for each in files.values() if not copy and _link(each, folder)}
    rest = [each for each in files.values() if each.name not in linked]
    check_room(folder, sum(_size(each) for each in rest) + CHUNK)
    digests: dict[str, str] = {}
    stamps: dict[Path, Stamp] = {}
    for each in files.values():
        place = folder / each.name
        take = _read if each.name in linked else _copy
        digests[each.name], stamps[place] = take(each, place, report)
    for role, template in templates.items():
        with _new(folder / _template_name(role)) as out:
            _write(out, template)

    def there(what: str, given: ModelFile | AdapterFile) -> tuple[Path, int, str]:
        place = folder / files[given.path.resolve()].name
        if given.sha256 not in (None, digests[place.name]):
            raise ModelError(
                f"The {what} {given.path.name} is not the file that its bundle names: its SHA-256 "
                "differs."
            )
        return place, stamps[place][2], digests[place.name]

    models = {
        role: _settled(model, there, folder, templates.get(role))
        for role, model in wanted.models.items()
    }
    copied = tuple(each.name for each in rest)
    return Put(replace(wanted, models=models, folder=folder), tuple(sorted(linked)), copied, stamps)


def _files(wanted: Bundle) -> dict[Path, _File]:
    """The models and adapters, each file once under a plain name, by its real path."""
    found: dict[Path, _File] = {}
    # An expert that is its base with an adapter shares a file that is the base's.
    for role, model in sorted(wanted.models.items(), key=lambda pair: pair[0].startswith("expert")):
        file = _File(f"{role} model", model.path.resolve(), f"{role}.gguf")
        found.setdefault(file.source, file)
    for role, adapter in wanted.adapters.items():
        source = adapter.path.resolve()
        found.setdefault(source, _File(f"{role}'s adapter", source, f"{role}-adapter.gguf"))
    return found


def _settled(
    model: ModelFile,
    there: Callable[[str, ModelFile | AdapterFile], tuple[Path, int, str]],
    folder: Path,
    template: bytes | None,
) -> ModelFile:
    """A model as it lies in the folder of the bundle."""
    path, size, digest = there(f"{model.role} model", model)
    adapter = model.adapter
    if adapter is not None:
        place, length, of_adapter = there(f"{model.role}'s adapter", adapter)
        adapter = replace(adapter, path=place, size=length, sha256=of_adapter, package=None)
    made = replace(model, path=path, size=size, sha256=digest, adapter=adapter, package=None)
    if template is None:
        return made
    return replace(
        made,
        template=None,
        template_file=folder / _template_name(model.role),
        template_sha256=hashlib.sha256(template).hexdigest(),
    )


def _template_name(role: Role) -> str:
    return f"{role}.jinja"


def _link(file: _File, folder: Path) -> bool:
    """Links a file, if nobody but this user and root can change it and the disk allows it."""
    if not hasattr(os, "geteuid"):  # nobody can say whose it is
        return False
    try:
        found = os.stat(file.source)
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others or found.st_uid not in (os.geteuid(), 0) or not stat.S_ISREG(found.st_mode):
            return False
        os.link(file.source, folder / file.name)
    except OSError:  # another disk, a file system without links, a file of somebody else
        return False
    return True


def _size(file: _File) -> int:
    try:
        return os.stat(file.source).st_size
    except OSError as error:
        raise _unreadable(file, error) from None


def _read(file: _File, place: Path, report: Report | None) -> tuple[str, Stamp]:
    """Digest and stamp of a file that was linked."""
    with open_regular(place) as stream:
        return _through(file, stream, None, report)


def _copy(file: _File, place: Path, report: Report | None) -> tuple[str, Stamp]:
    """Copies a file; digest and stamp are those of the copy."""
    with open_regular(file.source) as stream, _new(place) as out:
        digest, _ = _through(file, stream, out, report)
        _write(out, b"")
        return digest, stamp_of(os.fstat(out.fileno()))


def _through(
    file: _File, stream: BinaryIO, out: BinaryIO | None, report: Report | None
) -> tuple[str, Stamp]:
    """Reads a file to its end, and writes it where that is wanted."""
    digest, done, stamp = hashlib.sha256(), 0, stamp_of(os.fstat(stream.fileno()))
    while chunk := _chunk(file, stream, min(CHUNK, stamp[2] - done)):  # it may grow meanwhile
        digest.update(chunk)
        done += len(chunk)
        if out is not None:
            out.write(chunk)
        if report is not None:
            report(file.name, done / stamp[2])
    if done != stamp[2] or stamp_of(os.fstat(stream.fileno())) != stamp:
        raise _changed(file.source.name)
    return digest.hexdigest(), stamp


def _chunk(file: _File, stream: BinaryIO, count: int) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:
        raise _unreadable(file, error) from None


def _new(place: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(place, flags | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _write(out: BinaryIO, data: bytes) -> None:
    """Writes to the disk itself."""
    out.write(data)
    out.flush()
    os.fsync(out.fileno())


def _unreadable(file: _File, error: OSError) -> ModelError:
    reason = error.strerror or "unreadable"
    return ModelError(f"The {file.what} {file.source.name} cannot be read: {reason}.")


def _changed(name: str) -> ModelError:
    return ModelError(
        f"{name} changed while it was looked at. Nothing was made: see who writes to it, then "
        "start again."
    )
