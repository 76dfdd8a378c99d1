"""`capt-local models export`, `import`, `keygen`, `trust`: bundles on a stick, and their keys."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capt_local.bundles.verify import Check
from capt_local.cli.exits import ExitCode
from capt_local.cli.models.manage import bundle_argument, mebibytes, named, size_of
from capt_local.cli.options import ViewFlags, argument, flag
from capt_local.config import Feature, key_folders, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.policy import signed, trusted
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle


@dataclass(frozen=True, slots=True)
class ExportFlags:
    """Which bundle goes where."""

    bundle: str = bundle_argument()
    output: Path = flag("-o --output NAME.capt", "The archive.", MISSING)
    key: Path | None = flag("--key NAME.key", "Signs with this private key.")
    unsigned: bool = flag(
        "--unsigned", "Goes out without a signature; importing it needs a flag.", False
    )


@dataclass(frozen=True, slots=True)
class ImportFlags:
    """What is accepted."""

    path: Path = argument("NAME.capt", "What models export wrote.", MISSING)
    key: Path | None = flag(
        "--key FILE.pub",
        "Trusts this public key for this import too.",
        feature=Feature.UNSIGNED,
    )
    allow_unsigned: bool = flag(
        "--allow-unsigned",
        "Takes a bundle that nobody has signed.",
        False,
        feature=Feature.UNSIGNED,
    )
    allow_older: bool = flag(
        "--allow-older", "Takes a version that is not newer than the installed one.", False
    )


def models_export(what: ExportFlags, view: ViewFlags) -> int:
    """Writes a bundle as one file for a machine without a network, signed.

    Without --key, the signature that the bundle came with goes with it. Each file is checked
    against the manifest as it is copied.
    """
    from capt_local.bundles import archive, store
    from capt_local.bundles.sign import read_private, read_signature

    screen = Screen.standard(view.verbose)
    if what.unsigned and what.key:
        raise UsageError("Give either --key or --unsigned.")
    # Also where it is signed anew: what was changed behind a signature goes nowhere.
    bundle = signed(store.find(what.bundle))
    key = read_private(what.key) if what.key else None
    if not (key or what.unsigned or bundle.folder is None or read_signature(bundle.folder)):
        raise UsageError(
            "The bundle has no signature. Give --key NAME.key (capt-local models keygen makes "
            "one), or --unsigned."
        )
    try:
        made = archive.export(bundle, what.output, key, screen.progress, unsigned=what.unsigned)
    finally:
        screen.clear_progress()
    screen.notes(bundle.notices)
    screen.line(f"{named(bundle)} is written to {made}.")
    return ExitCode.OK


def models_import(what: ImportFlags, view: ViewFlags) -> int:
    """Takes a bundle into the user's own store: the signature first, then whole or not at all.

    Exit code 3 when the bundle is
    not to be trusted, damaged, or older than the installed one; the store is then what it was.
    """
    from capt_local.bundles.install import import_bundle
    from capt_local.bundles.sign import read_public
    from capt_local.model_checks import check_tokenizers

    screen = Screen.standard(view.verbose)
    limits = read_site().limits
    rule = ""
    if limits.forbids(Feature.UNSIGNED):  # only what the site's own keys have signed
        rule = f"Only keys of the site count: {limits.file} forbids {Feature.UNSIGNED}."
    keys = dict(trusted(by_the_site=bool(rule)))
    if what.key is not None and not rule:
        given = read_public(what.key)
        keys[given.fingerprint] = given

    def look(bundle: Bundle) -> None:
        examine(bundle, screen)
        check_tokenizers(bundle.models.values())

    try:
        bundle, fresh = import_bundle(
            what.path,
            keys,
            look,
            screen.progress,
            unsigned=what.allow_unsigned and not rule,
            older=what.allow_older,
            rule=rule,
        )
    finally:
        screen.clear_progress()
    screen.notes(bundle.notices)
    by = f"signed by {bundle.signer}" if bundle.signer else "not signed by anybody"
    done = "is installed" if fresh else "was installed already, and is whole"
    screen.line(f"{named(bundle)} {done}: {by}.")
    screen.line(f"Use it with: capt-local generate -m {reference(bundle, screen)}")
    return ExitCode.OK


def reference(bundle: Bundle, screen: Screen) -> str:
    """What leads to an installed bundle: its id, or its folder with a note why."""
    from capt_local.bundles import store

    try:
        found = store.find(bundle.id)
        same = found.manifest_sha256 == bundle.manifest_sha256
        if found.folder == bundle.folder or (same and store.is_packaged(found)):
            return bundle.id
    except ModelError:  # another one, which is broken
        pass
    screen.notes([f"Another bundle has the id {bundle.id} and is found before this one."])
    return shlex.quote(str(bundle.folder))


def finished(place: Path, done: str, screen: Screen) -> None:
    """Says that a bundle was made, and how to go on with it."""
    from capt_local.bundles.manifest import read_bundle

    bundle = read_bundle(place)
    screen.notes(bundle.notices)
    leads = reference(bundle, screen)
    screen.line(f"{named(bundle)} is {done}: {place}, {mebibytes(size_of(bundle))}.")
    screen.line(f"How its models fit: capt-local models show {leads}")
    screen.line(f"Use it with: capt-local generate -m {leads}")


def examine(bundle: Bundle, screen: Screen) -> None:
    """Loads each file once in a process of its own, every weight looked at; that is remembered.

    Raises:
        ModelError: one is damaged, or ended the process that looked at it.
    """
    from capt_local.model_checks import look_first

    def progress(role: str, _: float) -> None:
        screen.progress(f"examining the {role}", list(bundle.models).index(role) / count)

    count = len(bundle.models)
    # Whoever vouches for it, and wherever it is put together.
    look_first(replace(bundle, folder=None), check=Check.ALWAYS, progress=progress)


@dataclass(frozen=True, slots=True)
class KeygenFlags:
    """Where the keys go."""

    output: Path = flag("-o --output NAME", "Writes NAME.key (0600) and NAME.pub.", MISSING)


@dataclass(frozen=True, slots=True)
class TrustFlags:
    """Which key is trusted, or no more."""

    key: Path | None = argument("[FILE.pub]", "A public key, as PEM.")
    remove: str | None = flag(
        "--remove NAME",
        "Takes the trust in a key back: its name, or the beginning of its fingerprint.",
    )


def models_keygen(what: KeygenFlags, view: ViewFlags) -> int:
    """Makes a pair of Ed25519 keys. Keep NAME.key secret; carry NAME.pub to those who import.

    The public key has to come by another way than the bundles: compare the fingerprint by phone.
    """
    from capt_local.bundles.sign import new_key

    screen = Screen.standard(view.verbose)
    private, public, fingerprint = new_key(what.output)
    screen.line(f"private key  {private}\npublic key   {public}\nfingerprint  {fingerprint}")
    return ExitCode.OK


def models_trust(what: TrustFlags, view: ViewFlags) -> int:
    """Installs a public key for this user: bundles that it has signed are accepted from now on.

    With --remove, a key that this user trusts is deleted again, and counts no more for bundles that
    were imported with it. These stay installed.
    """
    from capt_local.bundles.sign import install, uninstall

    screen = Screen.standard(view.verbose)
    if (what.key is None) == (what.remove is None):
        raise UsageError("Give either FILE.pub, or --remove NAME.")
    folder = key_folders()[-1]
    if what.key is None:
        key, bundles = uninstall(what.remove or "", folder)
        screen.line(f"not trusted any more: {key.name} {key.fingerprint}")
        if bundles:
            screen.note(f"note: its bundles are still installed: {', '.join(bundles)}.")
        return ExitCode.OK
    screen.line(f"trusted from now on: {install(what.key, folder).fingerprint}")
    limits = read_site().limits
    if limits.forbids(Feature.UNSIGNED):
        screen.note(f"note: {limits.file} forbids bundles that no key of the site has signed.")
    return ExitCode.OK
