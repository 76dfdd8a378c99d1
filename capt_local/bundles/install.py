"""Assembles a bundle and installs it atomically in the user's own store.

A bundle is assembled in a staging folder beside the store, on the same disk, and renamed into the
store after every byte has been checked against the manifest. Only this user can write to the
staging folder; files are created exclusively, never through a link. A running import holds a lock,
which the kernel releases however the process ends; leftovers of a killed one are deleted by the
next import of that bundle, or by `models clean`.

`models create` links files that only this user and root can change, so that a bundle of files on
the same disk uses no space, and copies all others; those that were given stay where they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from capt_local.bundles import store
from capt_local.bundles.archive import (
    CHUNK,
    Archive,
    Member,
    check_space,
    members,
    new_file,
    open_file,
)
from capt_local.bundles.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    NAME,
    RECEIPT,
    SCHEMA,
    SIGNATURE,
    AttachedFile,
    Bundle,
    Signer,
    is_older,
    parse_manifest,
    read_bundle,
    read_manifest,
    version_numbers,
)
from capt_local.bundles.sign import (
    LARGEST_SIGNATURE,
    TRUST_HINT,
    TrustedKey,
    check_signature,
    receipt,
)
from capt_local.bundles.verify import Progress, hashed, verify
from capt_local.errors import ModelError, UsageError
from capt_local.line_file import sync_folder
from capt_local.strict_json import (
    make_private_folder,
    open_regular,
    others_may_write,
    stamp_of,
)


def import_bundle(
    path: Path,
    keys: Mapping[str, TrustedKey],
    examine: Callable[[Bundle], None],
    report: Progress | None = None,
    *,
    unsigned: bool = False,
    older: bool = False,
    rule: str = "",
) -> tuple[Bundle, bool]:
    """Installs the bundle of an archive.

    Args:
        path: of the archive.
        keys: that are trusted, by fingerprint.
        examine: checks the models after they are copied; raises to refuse them.
        report: called with a file's name and the share of it that is copied.
        unsigned: whether a bundle without a signature is accepted.
        older: whether a version that is not newer than the installed one is accepted.
        rule: the site's rule about signatures, for error messages.

    Returns:
        The bundle as it is installed, with its signer; False if it was installed already.

    Raises:
        ModelError: it is not to be trusted, damaged, older, or cannot be copied; the store is what
            it was.
    """
    with Archive(path) as archive:
        manifest = archive.whole(MANIFEST, LARGEST_MANIFEST)
        signature = archive.whole(SIGNATURE, LARGEST_SIGNATURE)
        key: TrustedKey | None = None
        if signature:
            key = keys[check_signature(manifest, signature, keys, rule or TRUST_HINT)]
        elif not unsigned:
            hint = "Get a signed one, or take it on your own responsibility with --allow-unsigned."
            raise ModelError(
                f"The bundle is not signed, so nobody knows who made it. {rule or hint}"
            )
        # Parsed only after the signature check: the manifest may be hostile.
        bundle = parse_manifest(manifest, Path(MANIFEST), present=False)
        store.check_id(bundle)
        files = members(bundle)
        place = store.user_folder() / bundle.id
        signer = Signer(key.fingerprint, key.name) if key else None
        with new_staging(place) as staging:
            check_replaceable(place)
            if staging.is_installed(manifest, signature):
                for member in files:
                    archive.skip(archive.begin(member.name, member.size, member.most))
                archive.end()
                found = read_bundle(place)
                verify(found)
                if key:
                    staging.write_receipt(place, key)
                return replace(found, signer=signer), False
            if not older:
                _check_version(bundle, place)
            check_space(staging.folder, sum(each.most for each in files) + CHUNK)
            staging.write(staging.folder / MANIFEST, manifest)
            if signature:
                staging.write(staging.folder / SIGNATURE, signature)
            for member in files:
                _copy(archive, member, staging, report)
            archive.end()
            examine(read_bundle(staging.folder))
            if key:
                staging.write_receipt(staging.folder, key)
            staging.install()
    return replace(read_bundle(place), signer=signer), True


def _check_version(bundle: Bundle, place: Path) -> None:
    """Refuses a downgrade: an older bundle may have known defects."""
    file = place / MANIFEST
    if not file.is_file():
        return
    here = parse_manifest(read_manifest(file), file, present=False)
    # The same manifest again mends a signature that is gone.
    if here.manifest_sha256 == bundle.manifest_sha256 or is_older(here.version, bundle.version):
        return
    comparable = None not in (version_numbers(here.version), version_numbers(bundle.version))
    why = "which is not newer" if comparable else "and the two cannot be compared"
    raise ModelError(
        f"The bundle {bundle.id} is installed with version {here.version or 'unknown'}; this one "
        f"has {bundle.version or 'none'}, {why}. --allow-older takes it all the same."
    )


def _copy(archive: Archive, member: Member, staging: Staging, report: Progress | None) -> None:
    """Copies a file, and checks it against the manifest."""
    size = archive.begin(member.name, member.size, member.most)
    # An archive tells by itself what fails in reading it, so all else is the store's.
    with staging.guarded(), new_file(staging.folder / member.name) as out:
        digest = hashed(archive, size, report and partial(report, member.name), out)
        out.flush()
        os.fsync(out.fileno())
    if digest != member.sha256:
        raise ModelError(
            f"{member.name} is not the file that the manifest names: its SHA-256 differs. The "
            "store is what it was; get the bundle again from its source."
        )


class Staging:
    """The staging folder of a bundle, with its lock. Use it as a context manager.

    Args:
        place: the bundle's future folder in the user's own store.

    Attributes:
        folder: the staging folder.
        downloads: folder of partial downloads; they are kept for a retry.

    Raises:
        ModelError: the store cannot be written, or the same bundle is being imported already.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        above = place.parent.parent / "incoming"
        self.folder = above / place.name
        self.downloads = above / f"{place.name}{store.DOWNLOAD}"
        self._old = above / f"{place.name}{store.OLD}"
        with self.guarded():
            make_private_folder(place.parent)
            make_private_folder(above)
            self._lock = _lock(above, place.name)
            try:
                self._lock.acquire()
            except Timeout:
                raise ModelError(f"{place.name} is being imported already.") from None
            except NotImplementedError:
                raise OSError(0, "its file system has no locks") from None
            try:
                self._recover()
            except OSError:
                self._lock.release()
                raise

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Converts an OSError of file operations in the store to a ModelError."""
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"The store {self._place.parent} cannot be written: {error.strerror}. What is "
                "installed there is what it was."
            ) from None

    def is_installed(self, manifest: bytes, signature: bytes) -> bool:
        """Whether the bundle in the store has this manifest and signature."""
        found = _bytes(self._place / MANIFEST), _bytes(self._place / SIGNATURE)
        return found == (manifest, signature)

    def write(self, place: Path, data: bytes) -> None:
        """Writes a small file of the bundle, in the place of an earlier one."""
        with self.guarded():
            place.unlink(missing_ok=True)
            with new_file(place) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())

    def write_receipt(self, folder: Path, key: TrustedKey) -> None:
        """Writes down which key has signed the bundle in a folder, whose manifest is there."""
        with self.guarded():
            data = receipt(key, folder / MANIFEST)
        if _bytes(folder / RECEIPT) != data:
            self.write(folder / RECEIPT, data)

    def install(self) -> None:
        """Renames the bundle into the store, then deletes the one that it replaces."""
        check_replaceable(self._place)  # much time may have gone by
        with self.guarded():
            try:
                sync_folder(self.folder)
                if self._place.exists():
                    os.rename(self._place, self._old)
                os.rename(self.folder, self._place)
                for each in (self._place.parent, self.folder.parent):
                    sync_folder(each)
                if self._old.exists():
                    shutil.rmtree(self._old)
            except OSError:
                self._recover()
                raise

    def _recover(self) -> None:
        """After a power cut between the two renames: restores the old bundle, or deletes it."""
        if os.path.lexists(self._old):
            if os.path.lexists(self._place):
                wipe(self._old)
            else:
                os.rename(self._old, self._place)


@contextlib.contextmanager
def new_staging(place: Path) -> Iterator[Staging]:
    """A new, empty staging folder; it is deleted at the end, and leftovers of an earlier try too.

    Raises:
        ModelError: the folder cannot be written, or the same bundle is being made already.
    """
    with Staging(place) as staging:
        try:
            with staging.guarded():
                wipe(staging.folder)
                staging.folder.mkdir(mode=0o700)
            yield staging
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)


def install_path(name: str, *, replace: bool) -> Path:
    """Where a new bundle of an id will lie in the user's own store.

    Raises:
        UsageError: the id cannot be used.
        ModelError: a bundle is there that must not be replaced.
    """
    if not store.is_id(name) or name == store.DEMO:
        raise UsageError(
            "The id of a bundle has 1 to 64 letters, digits, '.', '-' or '_', first a letter or "
            f"digit; {store.DEMO} is that of the bundle that travels with the package."
        )
    place = store.user_folder() / name
    check_replaceable(place)
    if os.path.lexists(place) and not replace:
        raise ModelError(
            f"A bundle is there already ({place}). Give another id, or --replace to take its place."
        )
    return place


def check_replaceable(place: Path) -> None:
    """Raises ModelError if the path exists but is no bundle, such as a link to a folder."""
    if os.path.lexists(place) and (place.is_symlink() or not os.path.isfile(place / MANIFEST)):
        raise ModelError(
            f"{place} is there already, and is no bundle. Nothing was made: move it away first."
        )


def wipe(place: Path) -> None:
    """Deletes a file, a link, or a folder with all that it holds, if it is there."""
    if place.is_symlink() or not place.is_dir():
        place.unlink(missing_ok=True)
    else:
        shutil.rmtree(place)


def _bytes(place: Path) -> bytes:
    """The bytes of a regular file of the store; empty if it is missing or no regular file."""
    with contextlib.suppress(OSError), open_regular(place, follow=False) as stream:
        return stream.read(LARGEST_MANIFEST + 1)
    return b""


def _lock(above: Path, name: str) -> FileLock:
    return FileLock(above / f"{name}{store.LOCK}", timeout=0, mode=0o600)


def leftovers() -> dict[str, int]:
    """Leftovers of stopped imports: bytes by name of the bundle; changes nothing."""
    above, found = store.staging_folder(), dict[str, int]()
    with contextlib.suppress(OSError):
        for entry in sorted(above.iterdir()):
            name = entry.name.removesuffix(store.OLD).removesuffix(store.DOWNLOAD)
            if entry.name.endswith(store.LOCK) or not NAME.fullmatch(name):
                continue
            if not _is_busy(above, name):
                files = [each for each in (entry, *entry.rglob("*")) if not each.is_dir()]
                size = sum(os.lstat(each).st_size for each in files)
                found[name] = found.get(name, 0) + size
    return found


def _is_busy(above: Path, name: str) -> bool:
    if os.path.lexists(above / f"{name}{store.LOCK}"):
        try:
            with _lock(above, name):
                pass
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # a store that cannot be written
            pass
    return False


def clear(name: str) -> None:
    """Deletes the leftovers of one bundle; first undoes an installation that a power cut stopped.

    Raises:
        ModelError: an import of it is at work, or it cannot be deleted.
    """
    with Staging(store.user_folder() / name) as staging, staging.guarded():
        wipe(staging.folder)
        wipe(staging.downloads)


# --- a bundle of models that lie anywhere ---------------------------------------------------------

_HEAD = (
    "id", "title", "version", "requires", "tested_with", "review_by", "licence", "description",
    "context",
)  # fmt: skip


def assemble(
    wanted: Bundle, folder: Path, report: Progress | None = None
) -> tuple[Bundle, list[str]]:
    """Links or copies the files of a bundle into an empty folder.

    Returns:
        The bundle with paths, sizes and digests of its files; and the names of those that are hard
        links to the original files.

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
        if others_may_write(found) or not stat.S_ISREG(found.st_mode):
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
