"""Making a bundle of models that lie anywhere: their files in one folder, each with its digest.

A file is linked where only this user and root can change it, so that a bundle of files on the same
disk uses no space; any other is copied. The files that were given stay where they are.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from capt_local.bundles.archive import CHUNK, check_space, new_file, open_file
from capt_local.bundles.manifest import (
    MANIFEST,
    SCHEMA,
    AttachedFile,
    Bundle,
    read_bundle,
)
from capt_local.bundles.verify import Progress, hashed
from capt_local.errors import ModelError
from capt_local.strict_json import stamp_of

_HEAD = (
    "id", "title", "version", "requires", "tested_with", "review_by", "licence", "description",
    "context",
)  # fmt: skip


def put_together(
    wanted: Bundle, folder: Path, report: Progress | None = None
) -> tuple[Bundle, list[str]]:
    """Brings the files of a bundle, wherever they lie, into an empty folder.

    Returns:
        The bundle with places, sizes and digests of its files; and the names of those that share
        their bytes with the files that were given.

    Raises:
        ModelError: a file cannot be read or written, or there is too little room.
    """
    names: dict[Path, str] = {}
    # An expert that is its base with an adapter shares a file that is the base's.
    for role, model in sorted(wanted.models.items(), key=lambda pair: pair[0].startswith("expert")):
        names.setdefault(model.path.resolve(), f"{role}.gguf")
    for role, adapters in wanted.adapters.items():
        for number, adapter in enumerate(adapters, 1):
            name = f"{role}-adapter" + (f"-{number}" if number > 1 else "")
            names.setdefault(adapter.path.resolve(), f"{name}.gguf")
    scorer = wanted.scorer
    if scorer is not None:
        names.setdefault(scorer.path.resolve(), "scorer.gguf")
        names.setdefault(scorer.head.path.resolve(), "scorer.safetensors")
    linked = {source for source, name in names.items() if _link(source, folder / name)}
    copied = [source for source in names if source not in linked]
    check_space(folder, sum(source.stat().st_size for source in copied) + CHUNK)
    found = {}
    for source, name in names.items():
        share = report and partial(report, name)
        try:
            found[source] = _take(source, folder / name, source in linked, share)
        except OSError as error:
            reason = error.strerror or "unreadable"
            raise ModelError(f"{source.name} cannot be copied to {folder}: {reason}.") from None

    def placed(file: Any) -> Any:
        source = file.path.resolve()
        size, digest = found[source]
        return replace(file, path=folder / names[source], size=size, sha256=digest)

    models = {
        role: placed(replace(model, adapters=tuple(map(placed, model.adapters))))
        for role, model in wanted.models.items()
    }
    scorer = scorer and placed(replace(scorer, head=placed(scorer.head)))
    linked_names = sorted(names[source] for source in linked)
    return replace(wanted, models=models, scorer=scorer, folder=folder), linked_names


def _link(source: Path, place: Path) -> bool:
    """Links a file, if nobody but this user and root can change it and the disk allows it."""
    try:
        found = os.stat(source)
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others or found.st_uid not in (os.geteuid(), 0) or not stat.S_ISREG(found.st_mode):
            return False
        os.link(source, place)
    except OSError:  # another disk, a file system without links, a file of somebody else
        return False
    return True


def _take(
    source: Path, place: Path, linked: bool, report: Callable[[float], None] | None
) -> tuple[int, str]:
    """Size and digest of a file that was linked, or is copied now."""
    with open_file(source) as stream:
        before = stamp_of(os.fstat(stream.fileno()))
        if linked:
            digest = hashed(stream, before[2], report)
        else:
            with new_file(place) as out:
                digest = hashed(stream, before[2], report, out)
                out.flush()
                os.fsync(out.fileno())
        if stamp_of(os.fstat(stream.fileno())) != before:
            raise ModelError(
                f"{source.name} changed while it was looked at. Nothing was made: see who writes "
                "to it, then start again."
            )
    return before[2], digest


def write_manifest(bundle: Bundle, folder: Path) -> Path:
    """Writes `bundle.toml` into the folder that holds the models; the same input, the same bytes.

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
    head = {"schema": SCHEMA} | {key: getattr(bundle, key) for key in _HEAD}
    if bundle.review_by:
        head["review_by"] = datetime.date.fromisoformat(bundle.review_by)
    defaults = dataclasses.asdict(bundle.defaults)
    alphas = list(defaults.pop("alphas"))
    defaults["alpha"] = alphas if len(alphas) > 1 else (*alphas, "evidence")[0]
    text = _lines(head) + "\n[defaults]\n" + _lines(defaults)
    if bundle.card:
        text += "\n[card]\n" + _lines(bundle.card)
    for role, model in bundle.models.items():
        text += f"\n[models.{role}]\n" + _lines(_file(role, model, folder))
        table = f"[models.{role}.adapter]"
        above = f"\n[{table}]\n" if len(model.adapters) > 1 else f"\n{table}\n"
        for adapter in model.adapters:
            text += above + _lines(_file(f"{role}'s adapter", adapter, folder))
    if (scorer := bundle.scorer) is not None:
        text += "\n[models.scorer]\n" + _lines(_file("scorer", scorer, folder))
        text += "\n[models.scorer.head]\n" + _lines(_file("scorer's head", scorer.head, folder))
    return text


def _file(what: str, file: AttachedFile, folder: Path) -> dict[str, object]:
    if file.sha256 is None:
        raise ModelError(f"The {what} has no digest; describe it from its file first.")
    found: dict[str, object] = {"file": None}
    for field in dataclasses.fields(file):
        if field.name not in ("role", "path", "package", "adapters", "head"):
            value = getattr(file, field.name)
            found[field.name] = _relative(value, folder) if isinstance(value, Path) else value
    if file.package is None:
        return found | {"file": _relative(file.path, folder)}
    return found | {"file": file.package.file, "package": file.package.package}


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        raise ModelError(f"{path.name} does not lie in the folder of the bundle.") from None


def _lines(values: Mapping[str, object]) -> str:
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in values.items() if value not in (None, "")
    )


def _toml(value: object) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML string, but for the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, datetime.date) else repr(value)
