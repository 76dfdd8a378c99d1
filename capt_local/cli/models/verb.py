"""`capt-local models list`, `verify` and `remove`: the bundles of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.options import ViewFlags, option
from capt_local.cli.policy import signed
from capt_local.errors import ModelError
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


def bundle_argument() -> Any:
    """The bundle that a verb is about."""
    return typer.Argument(
        metavar="NAME|PATH", help="Its id, its folder or its bundle.toml.", show_default=False
    )


@dataclass(frozen=True, slots=True)
class ListFlags:
    """How the bundles are told."""

    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


@dataclass(frozen=True, slots=True)
class BundleFlags:
    """Which bundle, and how it is told."""

    bundle: Annotated[str, bundle_argument()]
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


@dataclass(frozen=True, slots=True)
class RemoveFlags:
    """Which bundle is deleted."""

    bundle: Annotated[str, bundle_argument()]
    yes: Annotated[bool, option("--yes", help="Delete it; without, only say what would go.")] = (
        False
    )


def models_list(how: ListFlags, view: ViewFlags) -> int:
    """The bundles that are here: packaged, in the user's store, in CAPT_LOCAL_MODELS.

    Exit code 3 when one of them is broken; the others are listed all the same.
    """
    from capt_local.bundle import store
    from capt_local.bundle.packaged import PackageMissing

    screen = Screen.standard(view.verbose)
    problems: list[ModelError] = []
    found: list[Bundle] = []
    for bundle in store.available(problems.append):
        try:
            found.append(signed(bundle))
        except ModelError as error:
            problems.append(ModelError(f"The bundle {bundle.id}: {error}"))
    if how.json:
        objects = [_as_object(bundle) for bundle in found]
        screen.line(dumps({"bundles": objects, "problems": [str(each) for each in problems]}))
    else:
        rows = tuple(
            (
                bundle.id,
                bundle.version,
                mebibytes(size_of(bundle)),
                _signer(bundle),
                bundle.title,
                _place(bundle),
            )
            for bundle in found
        )
        columns = ("id", "version", "size", "signed by", "title", "place")
        screen.show(Table("Bundles", rows, columns, (2,)))
        screen.notes(line for bundle in found for line in bundle.notices)
    for problem in problems:
        screen.error(str(problem))
    broken = any(not isinstance(problem, PackageMissing) for problem in problems)
    return ExitCode.MODEL if broken else ExitCode.OK


def models_verify(what: BundleFlags, view: ViewFlags) -> int:
    """Reads every file of a bundle and compares size and digest with its manifest.

    Exit code 3 when one is missing or another.
    """
    from capt_local.bundle import store, verify

    screen = Screen.standard(view.verbose)
    bundle = signed(store.find(what.bundle))
    try:
        checked = verify.verify(bundle, lambda role, part: screen.progress(f"reading {role}", part))
    finally:
        screen.clear_progress()
    if what.json:
        screen.line(dumps({"ok": True, **_as_object(bundle), "files": len(checked)}))
        return ExitCode.OK
    screen.notes(bundle.notices)
    by = f", signed by {bundle.signer}" if bundle.signer else ""
    screen.line(f"{bundle.id} is whole: {len(checked)} files, {mebibytes(size_of(bundle))}{by}.")
    return ExitCode.OK


def models_remove(what: RemoveFlags, view: ViewFlags) -> int:
    """Deletes a bundle from the user's own store; others are left to those who put them there.

    Without --yes nothing is deleted, and the exit code is 2.
    """
    from capt_local.bundle import remove

    screen = Screen.standard(view.verbose)
    folder = remove.removable(what.bundle)
    if not what.yes:
        screen.error(f"nothing is deleted without --yes; with it, {folder} would go.")
        return ExitCode.USAGE
    remove.remove(folder)
    screen.line(f"{folder} is deleted.")
    return ExitCode.OK


def named(bundle: Bundle) -> str:
    """The id, and the version if there is one."""
    return f"{bundle.id} {bundle.version}".rstrip()


def size_of(bundle: Bundle) -> int:
    """Bytes of the models and adapters; of a file that several share, once."""
    files = {model.path: model.size for model in bundle.models.values()}
    files |= {adapter.path: adapter.size for adapter in bundle.adapters.values()}
    return sum(files.values())


def mebibytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / (1 << 20):,.1f} MiB"


def _signer(bundle: Bundle) -> str:
    """Short, for a column."""
    signer = bundle.signer
    return (signer.name or f"{signer.key[:16]}...") if signer else ""


def _place(bundle: Bundle) -> str:
    return str(bundle.folder or Path())


def _as_object(bundle: Bundle) -> dict[str, Any]:
    return {
        "id": bundle.id,
        "version": bundle.version,
        "title": bundle.title,
        "licence": bundle.licence,
        "size": size_of(bundle),
        "pairs": bundle.pairs,
        "place": _place(bundle),
        "manifest_sha256": bundle.manifest_sha256,
        "signer": bundle.signer.as_object() if bundle.signer else None,
        "notices": list(bundle.notices),
    }
