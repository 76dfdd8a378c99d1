"""Making a bundle of models that lie anywhere: their files in one folder, each with its digest.

A file is linked where only this user and root can change it, so that a bundle of files on the same
disk uses no space; any other is copied. The files that were given stay where they are. Headers
alone are read to see whether an expert fits its base.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from capt_local.bundles import store
from capt_local.bundles.archive import open_file
from capt_local.bundles.manifest import (
    MANIFEST,
    SCHEMA,
    AdapterFile,
    Bundle,
    ModelFile,
    Role,
    adapted,
    pair_roles,
    paired,
    roles,
)
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.transfer import CHUNK, Report, check_room
from capt_local.bundles.verify import file_digest
from capt_local.errors import ModelError, UsageError
from capt_local.strict_json import Stamp, stamp_of

_OF_A_BUNDLE = re.compile(r"(?P<bundle>.+):(?P<role>target|(?:expert|base)(?:-[0-9]{1,2})?)")


def ingredients(
    target: str,
    experts: Sequence[str],
    bases: Sequence[str],
    adapters: Sequence[AdapterFile],
    find: Callable[[str], Bundle] = store.find,
) -> Bundle:
    """The models, by role, where they lie; of models of other bundles with what these say of them.

    Args:
        target: a file, or BUNDLE:ROLE.
        experts: likewise, one for each pair.
        bases: likewise, in the order of the experts.
        adapters: one for each expert; without experts, each expert is the base with its adapter.
        find: opens another bundle; raises a ModelError for one that is not to be used.

    Raises:
        UsageError: experts, bases and adapters do not go together.
        ModelError: there is no such file, bundle or model, or an expert is its own base.
    """
    given = (target, *paired(adapted(experts, bases, adapters), bases))
    known: dict[Role, ModelFile] = {}
    for role, text in zip(roles(len(given) // 2), given, strict=True):
        if (found := _of_a_bundle(role, text, find)) is not None:
            known[role] = found
    files = [
        known[role].path if role in known else Path(text)
        for role, text in zip(roles(len(given) // 2), given, strict=True)
    ]
    bundle = Bundle.from_paths(files[0], files[1::2], files[2::2], adapters)
    for role, model in known.items():
        own, other = model.adapter, bundle.models[role].adapter
        if own is not None and other is not None:
            raise UsageError(f"The {role} has an adapter in its bundle already; give no other.")
        bundle.models[role] = replace(model, adapter=own or other)
    for number in range(1, bundle.pairs + 1):
        expert, base = (bundle.models[role] for role in pair_roles(number))
        _refuse_twins(expert, base)
    return replace(bundle, notices=())


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _of_a_bundle(role: Role, text: str, find: Callable[[str], Bundle]) -> ModelFile | None:
    """The model of another bundle that is meant; None where a file is."""
    found = _OF_A_BUNDLE.fullmatch(text)
    if found is None or os.path.lexists(text):
        return None
    try:
        bundle = find(found["bundle"])
    except ModelError as error:
        raise ModelError(f"The {role}: {error}") from None
    if found["role"] not in bundle.models:
        have = ", ".join(bundle.models)
        raise ModelError(
            f"The {role}: the bundle {bundle.id} has no {found['role']}; it has {have}."
        )
    return replace(bundle.models[found["role"]], role=role)


def _refuse_twins(expert: ModelFile, base: ModelFile) -> None:
    """Refuses an expert that would say the same as its base."""
    if not same_file(expert.path, base.path) or _adapter(expert) != _adapter(base):
        return
    why = " and an adapter with the scale 0" if expert.adapter else ""
    raise ModelError(
        f"The {expert.role} and the {base.role} are the same file{why}, so nothing would be "
        f"contrasted. Give the model that the {expert.role} was trained from as {base.role}."
    )


def _adapter(model: ModelFile) -> tuple[Path, float] | None:
    adapter = model.adapter
    return (adapter.path.resolve(), adapter.scale) if adapter and adapter.scale else None


@dataclass(frozen=True, slots=True)
class Put:
    """A bundle whose files lie in one folder.

    Attributes:
        bundle: with their places, sizes and digests.
        linked: files that share their bytes with those that were given, by name.
        copied: files that were copied.
        stamps: of the files, as they were when their digests were computed.
    """

    bundle: Bundle
    linked: tuple[str, ...]
    copied: tuple[str, ...]
    stamps: Mapping[Path, Stamp]

    def check(self) -> None:
        """Whether the files are still those whose digests were computed.

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
class _SourceFile:
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
    copy: bool = False,
    report: Report | None = None,
) -> Put:
    """Brings the files of a bundle into an empty folder.

    Args:
        wanted: its models, wherever they lie; those with a digest have to have it.
        folder: empty, of this user alone.
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

    def there(what: str, given: ModelFile | AdapterFile) -> tuple[Path, int, str]:
        place = folder / files[given.path.resolve()].name
        if given.sha256 not in (None, digests[place.name]):
            raise ModelError(
                f"The {what} {given.path.name} is not the file that its bundle names: its SHA-256 "
                "differs."
            )
        return place, stamps[place][2], digests[place.name]

    models = {role: _placed(model, there) for role, model in wanted.models.items()}
    copied = tuple(each.name for each in rest)
    return Put(replace(wanted, models=models, folder=folder), tuple(sorted(linked)), copied, stamps)


def _files(wanted: Bundle) -> dict[Path, _SourceFile]:
    """The models and adapters, each file once under a plain name, by its real path."""
    found: dict[Path, _SourceFile] = {}
    # An expert that is its base with an adapter shares a file that is the base's.
    for role, model in sorted(wanted.models.items(), key=lambda pair: pair[0].startswith("expert")):
        file = _SourceFile(f"{role} model", model.path.resolve(), f"{role}.gguf")
        found.setdefault(file.source, file)
    for role, adapter in wanted.adapters.items():
        source = adapter.path.resolve()
        found.setdefault(source, _SourceFile(f"{role}'s adapter", source, f"{role}-adapter.gguf"))
    return found


def _placed(
    model: ModelFile, there: Callable[[str, ModelFile | AdapterFile], tuple[Path, int, str]]
) -> ModelFile:
    """A model as it lies in the folder of the bundle; its own template is pinned."""
    path, size, digest = there(f"{model.role} model", model)
    adapter = model.adapter
    if adapter is not None:
        place, length, of_adapter = there(f"{model.role}'s adapter", adapter)
        adapter = replace(adapter, path=place, size=length, sha256=of_adapter, package=None)
    return replace(model, path=path, size=size, sha256=digest, adapter=adapter, package=None)


def _link(file: _SourceFile, folder: Path) -> bool:
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


def _size(file: _SourceFile) -> int:
    try:
        return os.stat(file.source).st_size
    except OSError as error:
        raise _unreadable(file, error) from None


def _read(file: _SourceFile, place: Path, report: Report | None) -> tuple[str, Stamp]:
    """Digest and stamp of a file that was linked."""
    with open_file(place) as stream:
        return _through(file, stream, None, report)


def _copy(file: _SourceFile, place: Path, report: Report | None) -> tuple[str, Stamp]:
    """Copies a file; digest and stamp are those of the copy."""
    with open_file(file.source) as stream, _new(place) as out:
        digest, _ = _through(file, stream, out, report)
        _write(out, b"")
        return digest, stamp_of(os.fstat(out.fileno()))


def _through(
    file: _SourceFile, stream: BinaryIO, out: BinaryIO | None, report: Report | None
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


def _chunk(file: _SourceFile, stream: BinaryIO, count: int) -> bytes:
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


def _unreadable(file: _SourceFile, error: OSError) -> ModelError:
    reason = error.strerror or "unreadable"
    return ModelError(f"The {file.what} {file.source.name} cannot be read: {reason}.")


def _changed(name: str) -> ModelError:
    return ModelError(
        f"{name} changed while it was looked at. Nothing was made: see who writes to it, then "
        "start again."
    )


def describe(
    role: Role,
    path: Path,
    *,
    template_file: Path | None = None,
    template_sha256: str | None = None,
    adapter: AdapterFile | None = None,
    **about: Any,
) -> ModelFile:
    """One model with size and digest computed from the file.

    Args:
        role: what it does in the bundle.
        path: of the GGUF file, in the folder of the bundle or in an installed package.
        template_file: chat template in the folder of the bundle.
        template_sha256: digest of the GGUF's own template, to pin it.
        adapter: a LoRA adapter in the folder of the bundle; its digest is computed too.
        about: other attributes of `ModelFile`.

    Raises:
        ModelError: a file cannot be read.
    """
    try:
        if template_file is not None:
            template_sha256 = hashlib.sha256(template_file.read_bytes()).hexdigest()
        size = path.stat().st_size
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"The {role}'s files cannot be read: {reason}.") from None
    return ModelFile(
        role=role,
        path=path,
        size=size,
        sha256=file_digest(path, size),
        template_file=template_file,
        template_sha256=template_sha256,
        adapter=adapter and replace(adapter, sha256=file_digest(adapter.path, adapter.size)),
        **about,
    )


def write_manifest(bundle: Bundle, folder: Path) -> Path:
    """Writes `bundle.toml` into the folder that holds the models; the same input, the same bytes.

    Returns:
        The manifest that was written.

    Raises:
        ModelError: a model lies elsewhere, or what was written does not read back the same.
    """
    file = folder / MANIFEST
    draft = folder / f"{MANIFEST}.new"
    try:
        draft.write_bytes(manifest_text(bundle, folder).encode("utf-8"))
        # Read back before it replaces anything, so that what was written can be read.
        again = read_bundle(draft)
        if replace(again, notices=()) != replace(bundle, folder=folder, notices=()):
            raise ModelError(
                "The manifest does not read back as it was meant; nothing was written."
            )
        os.replace(draft, file)
    except OSError as error:
        raise ModelError(f"{file} cannot be written: {error.strerror or 'no access'}.") from None
    finally:
        draft.unlink(missing_ok=True)
    return file


def manifest_text(bundle: Bundle, folder: Path) -> str:
    """The text of a manifest; see `write_manifest`.

    Raises:
        ModelError: a model has no digest or lies outside the folder.
    """
    head = {
        "schema": SCHEMA,
        "id": bundle.id,
        "title": bundle.title,
        "version": bundle.version,
        "requires": bundle.requires or None,
        "tested_with": bundle.tested_with or None,
        "review_by": datetime.date.fromisoformat(bundle.review_by) if bundle.review_by else None,
        "licence": bundle.licence,
        "description": bundle.description,
        "context": bundle.context,
    }
    given = bundle.defaults
    alphas: object = list(given.alphas) if len(given.alphas) > 1 else (*given.alphas, "evidence")[0]
    defaults = {
        "method": given.method,
        "alpha": alphas,
        "plausibility": given.plausibility,
        "temperature": given.temperature,
        "max_tokens": given.max_tokens,
    }
    tables = [_lines(head), "\n[defaults]\n" + _lines(defaults)]
    if bundle.card:
        tables.append("\n[card]\n" + _lines(bundle.card))
    for role, model in bundle.models.items():
        about = {
            "style": model.style.value,
            "template": model.template,
            "template_file": model.template_file and _relative(model.template_file, folder),
            "template_sha256": model.template_sha256,
            "tokenizer_sha256": model.tokenizer_sha256,
        }
        tables.append(f"\n[models.{role}]\n" + _lines(_file(role, model, folder) | about))
        if model.adapter is not None:
            values = _file(f"{role}'s adapter", model.adapter, folder)
            tables.append(
                f"\n[models.{role}.adapter]\n" + _lines(values | {"scale": model.adapter.scale})
            )
    return "".join(tables)


def _file(what: str, file: ModelFile | AdapterFile, folder: Path) -> dict[str, object]:
    if file.sha256 is None:
        raise ModelError(f"The {what} has no digest; describe it from its file first.")
    package = file.package
    return {
        "package": package and package.package,
        "file": package.file if package else _relative(file.path, folder),
        "size": file.size,
        "sha256": file.sha256,
        "licence": file.licence,
        "source": file.source,
    }


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        raise ModelError(f"{path.name} does not lie in the folder of the bundle.") from None


def _lines(values: Mapping[str, object]) -> str:
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None
    )


def _toml(value: object) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML string, but for the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, datetime.date) else repr(value)
