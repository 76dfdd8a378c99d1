"""`capt-local models ...`: lists, checks, exports and imports bundles; manages keys."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.bundles.verify import Check
from capt_local.cli.exits import ExitCode
from capt_local.cli.options import JsonFlags, ViewFlags, argument, flag, setting, verify_option
from capt_local.config import Feature, key_folders, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.policy import permitted, signed, signer_text, trusted
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capt_local.bundles.manifest import Bundle, ModelFile
    from capt_local.llama.weights import Weights
    from capt_local.strict_json import Stamp
    from capt_local.tokenization import Vocabulary


def bundle_argument() -> Any:
    """The bundle that a verb is about."""
    return argument("NAME|PATH", "Its id, its folder or its bundle.toml.", MISSING)


_HEAD = (
    "id", "title", "version", "licence", "description", "requires", "tested_with", "review_by",
    "context", "pairs", "manifest_sha256",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ListFlags(JsonFlags, ViewFlags):
    """How the bundles are shown."""


@dataclass(frozen=True, kw_only=True)
class BundleFlags(ViewFlags):
    """Which bundle, and how it is shown."""

    bundle: str = bundle_argument()
    json: bool = setting("--json", "Write JSON.", False)


@dataclass(frozen=True, kw_only=True)
class ShowFlags(BundleFlags):
    """And how its digests are checked."""

    verify: Check = verify_option()


@dataclass(frozen=True, kw_only=True)
class CleanFlags(ViewFlags):
    """Whether anything is deleted."""

    yes: bool = flag("--yes", "Delete it; without --yes, only say what would be deleted.", False)


@dataclass(frozen=True, kw_only=True)
class RemoveFlags(CleanFlags):
    """Which bundle is deleted."""

    bundle: str = argument("NAME", "The id of the bundle.", MISSING)


def models_list(flags: ListFlags) -> int:
    """The bundles that are here: packaged, in the user's store, in CAPT_LOCAL_MODELS.

    Exit code 3 when one of them is broken; the others are listed all the same.
    """
    from capt_local.bundles.manifest import PackageMissing

    screen = Screen.standard(flags.verbose)
    found, problems = signed_bundles()
    if flags.json:
        objects = [_about(bundle) for bundle in found]
        screen.line(dumps({"bundles": objects, "problems": [str(each) for each in problems]}))
    else:
        rows = []
        for each in found:
            by = each.signer.name or each.signer.key[:16] if each.signer else ""
            size, place = mebibytes(size_of(each)), str(each.folder)
            rows.append((each.id, each.version, size, by, each.title, place))
        columns = ("id", "version", "size", "signed by", "title", "place")
        screen.show(Table("Bundles", tuple(rows), columns, (2,)))
        screen.notes(line for bundle in found for line in bundle.notices)
    for problem in problems:
        screen.error(str(problem))
    broken = any(not isinstance(problem, PackageMissing) for problem in problems)
    return ExitCode.MODEL if broken else ExitCode.OK


def signed_bundles() -> tuple[list[Bundle], list[ModelError]]:
    """All bundles that can be named by their id, with their signers; and what is wrong."""
    from capt_local.bundles import store

    bundles, problems = store.available()
    found = []
    for bundle in bundles:
        try:
            found.append(signed(bundle))
        except ModelError as error:
            problems.append(ModelError(f"The bundle {bundle.id}: {error}"))
    return found, problems


def models_verify(flags: BundleFlags) -> int:
    """Reads every file of a bundle and compares size and digest with its manifest.

    Exit code 3 when one is missing or another.
    """
    from capt_local.bundles import store, verify

    screen = Screen.standard(flags.verbose)
    bundle = signed(store.find(flags.bundle))
    try:
        checked = verify.verify(bundle, lambda role, part: screen.progress(f"reading {role}", part))
    finally:
        screen.clear_progress()
    if flags.json:
        screen.line(dumps({"ok": True, **_about(bundle), "files": len(checked.stamps)}))
        return ExitCode.OK
    screen.notes(bundle.notices)
    by = f", signed by {bundle.signer}" if bundle.signer else ""
    screen.line(
        f"{bundle.id} is whole: {len(checked.stamps)} files, {mebibytes(size_of(bundle))}{by}."
    )
    return ExitCode.OK


def models_remove(flags: RemoveFlags) -> int:
    """Deletes a bundle from the user's own store; others are left to those who put them there.

    Without --yes nothing is deleted, and the exit code is 2.
    """
    from capt_local.bundles import store

    screen = Screen.standard(flags.verbose)
    folder = store.removable(flags.bundle)
    if not flags.yes:
        screen.error(f"nothing is deleted without --yes; with it, {folder} would go.")
        return ExitCode.USAGE
    store.remove(folder)
    screen.line(f"{folder} is deleted.")
    return ExitCode.OK


def models_clean(flags: CleanFlags) -> int:
    """Deletes what imports and downloads that were stopped have left beside the user's own store.

    A pull that is given again would go on with it. What is being imported right now stays.
    Without --yes nothing is deleted, and the exit code is 2.
    """
    from capt_local.bundles.install import clear, leftovers

    screen = Screen.standard(flags.verbose)
    found = leftovers()
    if not found:
        screen.line("Nothing is left of imports that were stopped.")
        return ExitCode.OK
    if not flags.yes:
        listed = ", ".join(f"{name} ({mebibytes(size)})" for name, size in found.items())
        screen.error(f"nothing is deleted without --yes; what would go is left of {listed}.")
        return ExitCode.USAGE
    for name, size in found.items():
        clear(name)
        screen.line(f"What was left of {name} is deleted: {mebibytes(size)}.")
    return ExitCode.OK


def models_show(flags: ShowFlags) -> int:
    """What a bundle is: its models, how well they fit together, licences, and its card.

    The digests are checked first, so that nothing else than the models of the bundle is read.
    """
    from capt_local.bundles import store, verify
    from capt_local.model_checks import NOT_PROBED, is_trusted, probe_untrusted

    screen = Screen.standard(flags.verbose)
    bundle = permitted(store.find(flags.bundle), flags.verify)
    try:

        def report(role: str, part: float) -> None:
            screen.progress(f"reading {role}", part)

        stamps = verify.verify(bundle, report, flags.verify).stamps
        stamps = probe_untrusted(bundle, check=flags.verify, stamps=stamps, progress=report)
    finally:
        screen.clear_progress()
    if flags.verify is Check.NEVER and not is_trusted(bundle):
        screen.note(f"note: {NOT_PROBED}")
    found = described(bundle, stamps)
    if flags.json:
        screen.line(dumps(found, indent=2))
        return ExitCode.OK
    screen.show(*_tables(found, signer_text(bundle)))
    screen.notes(bundle.notices)
    return ExitCode.OK


def described(
    bundle: Bundle,
    stamps: Mapping[Path, Stamp] | None = None,
    look: Callable[[ModelFile, Weights], None] = lambda *_: None,
) -> dict[str, Any]:
    """A bundle as JSON: metadata, models and fit; only the vocabularies are loaded.

    A file that is not the one of its stamp is not loaded. `look` is called with each model while
    its vocabulary is there.

    Raises:
        ModelError: a file cannot be loaded.
    """
    from capt_local.llama.weights import Weights

    models: dict[str, dict[str, Any]] = {}
    vocabularies: dict[str, Vocabulary] = {}
    for role, model in bundle.models.items():
        with Weights(model.path, vocabulary_only=True, stamps=stamps) as weights:
            vocabularies[role] = weights.vocabulary
            models[role] = _model(model, weights)
            look(model, weights)
    return {
        "bundle": _about(bundle),
        "models": models,
        "fit": _fits(bundle, models, vocabularies),
        "card": bundle.card,
        "notices": list(bundle.notices),
    }


def _about(bundle: Bundle) -> dict[str, Any]:
    return {key: getattr(bundle, key) for key in _HEAD} | {
        "size": size_of(bundle),
        "place": str(bundle.folder),
        "signer": bundle.signer.as_object() if bundle.signer else None,
        "notices": list(bundle.notices),
    }


def _model(model: ModelFile, weights: Weights) -> dict[str, Any]:
    from capt_local.llama.gguf_header import file_digests

    about, digests = weights.metadata, file_digests(model.path, weights.header)
    return {
        "file": model.path.name,
        "package": model.package.package if model.package else None,
        "size": model.size,
        "sha256": model.sha256,
        "architecture": about.architecture,
        "quantization": about.file_type,
        "vocabulary": about.vocabulary_size,
        "trained_context": about.context_length,
        "licence": model.licence,
        "source": model.source,
        "style": model.style.value,
        "adapter": ", ".join(map(str, model.adapters)) or None,
        "tokenizer_sha256": digests.tokenizer,
        "template_sha256": model.template_sha256 or digests.template,
        "template": model.template,
    }


def _fits(
    bundle: Bundle, models: dict[str, dict[str, Any]], vocabularies: dict[str, Vocabulary]
) -> dict[str, Any]:
    fits: dict[str, Any] = {}
    for expert, base in bundle.pair_roles:
        ours, theirs = models[expert], models[base]
        same = {
            name: ours[key] == theirs[key]
            for name, key in (
                ("same_tokenizer", "tokenizer_sha256"),
                ("same_template", "template_sha256"),
                ("same_quantization", "quantization"),
            )
        }
        same["same_template"] &= ours["template"] == theirs["template"]
        pieces = []  # those that are text, of the target and of the expert
        for one in (vocabularies["target"], vocabularies[expert]):
            pairs = zip(one.pieces(), one.is_text, strict=True)
            pieces.append({piece for piece, text in pairs if text})
        fits[expert] = {
            "base": base,
            "same_vocabulary": vocabularies[expert].same_as(vocabularies[base]),
            **same,
            "overlap": len(pieces[0] & pieces[1]) / max(1, len(pieces[0])),
        }
    return fits


def _tables(found: dict[str, Any], signer: str) -> list[Table]:
    about = found["bundle"]
    head = {**about, "size": mebibytes(about["size"]), "signer": signer, "notices": ""}
    tables = [Table("Bundle", _rows(head))]
    for role, model in found["models"].items():
        rows = {**model, "size": mebibytes(model["size"]), "vocabulary": f"{model['vocabulary']:,}"}
        tables.append(Table(role, _rows(rows)))
    for expert, fit in found["fit"].items():
        rows = {**fit, "overlap": f"{100 * fit['overlap']:.0f} % of the target's pieces"}
        tables.append(Table(f"How {expert} and {fit['base']} fit", _rows(rows)))
    if card := found["card"]:
        tables.append(Table("Card", _rows(card)))
    return tables


def _rows(values: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (name.replace("_", " "), text)
        for name, value in values.items()
        for text in [("no", "yes")[value] if isinstance(value, bool) else str(value)]
        if value not in ("", None)
    )


def named(bundle: Bundle) -> str:
    """The id, and the version if there is one."""
    return f"{bundle.id} {bundle.version}".rstrip()


def size_of(bundle: Bundle) -> int:
    """Bytes of all files; of one that several models share, once."""
    return sum({file.path: file.size for _, file in bundle.files}.values())


def mebibytes(count: int, digits: int = 1) -> str:
    """A number of bytes for people."""
    return f"{count / (1 << 20):,.{digits}f} MiB"


@dataclass(frozen=True, kw_only=True)
class ExportFlags(ViewFlags):
    """Which bundle goes where."""

    bundle: str = bundle_argument()
    output: Path = flag("-o --output NAME.capt", "The archive.", MISSING)
    key: Path | None = flag("--key NAME.key", "Signs with this private key.")
    unsigned: bool = flag(
        "--unsigned", "Goes out without a signature; importing it needs a flag.", False
    )


@dataclass(frozen=True, kw_only=True)
class ImportFlags(ViewFlags):
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


def models_export(flags: ExportFlags) -> int:
    """Writes a bundle as one file for a machine without a network, signed.

    Without --key, the signature that the bundle came with goes with it. Each file is checked
    against the manifest as it is copied.
    """
    from capt_local.bundles import archive, store
    from capt_local.bundles.sign import read_private, read_signature

    screen = Screen.standard(flags.verbose)
    if flags.unsigned and flags.key:
        raise UsageError("Give either --key or --unsigned.")
    # Even if it is signed again: a manifest that was changed after signing is not exported.
    bundle = signed(store.find(flags.bundle))
    key = read_private(flags.key) if flags.key else None
    if not (key or flags.unsigned or bundle.folder is None or read_signature(bundle.folder)):
        raise UsageError(
            "The bundle has no signature. Give --key NAME.key (capt-local models keygen makes "
            "one), or --unsigned."
        )
    try:
        made = archive.export(bundle, flags.output, key, screen.progress, unsigned=flags.unsigned)
    finally:
        screen.clear_progress()
    screen.notes(bundle.notices)
    screen.line(f"{named(bundle)} is written to {made}.")
    return ExitCode.OK


def models_import(flags: ImportFlags) -> int:
    """Installs a bundle in the user's own store: signature first, then whole or not at all.

    Exit code 3 when the bundle is
    not to be trusted, damaged, or older than the installed one; the store is then what it was.
    """
    from capt_local.bundles.install import import_bundle
    from capt_local.bundles.sign import read_public
    from capt_local.model_checks import check_tokenizers

    screen = Screen.standard(flags.verbose)
    limits = read_site().limits
    rule = ""
    if limits.forbids(Feature.UNSIGNED):  # only what the site's own keys have signed
        rule = f"Only keys of the site count: {limits.file} forbids {Feature.UNSIGNED}."
    keys = dict(trusted(by_the_site=bool(rule)))
    if flags.key is not None and not rule:
        given = read_public(flags.key)
        keys[given.fingerprint] = given

    def look(bundle: Bundle) -> None:
        examine(bundle, screen)
        check_tokenizers(bundle.models.values())

    try:
        bundle, fresh = import_bundle(
            flags.path,
            keys,
            look,
            screen.progress,
            unsigned=flags.allow_unsigned and not rule,
            older=flags.allow_older,
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
    """How to name an installed bundle: by its id, or by its folder, with a note why."""
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
    """Prints that a bundle was made, and the commands to use it."""
    from capt_local.bundles.manifest import read_bundle

    bundle = read_bundle(place)
    screen.notes(bundle.notices)
    leads = reference(bundle, screen)
    screen.line(f"{named(bundle)} is {done}: {place}, {mebibytes(size_of(bundle))}.")
    screen.line(f"How its models fit: capt-local models show {leads}")
    screen.line(f"Use it with: capt-local generate -m {leads}")


def examine(bundle: Bundle, screen: Screen) -> None:
    """Probes each file in a confined process, checking every weight; the result is cached.

    Raises:
        ModelError: one is damaged, or crashed the probe.
    """
    from capt_local.model_checks import probe_untrusted

    def progress(role: str, _: float) -> None:
        screen.progress(f"examining the {role}", list(bundle.models).index(role) / count)

    count = len(bundle.models)
    # Without a folder it counts as untrusted, so it is probed even if it is signed.
    probe_untrusted(replace(bundle, folder=None), check=Check.ALWAYS, progress=progress)


@dataclass(frozen=True, kw_only=True)
class KeygenFlags(ViewFlags):
    """Where the keys go."""

    output: Path = flag("-o --output NAME", "Writes NAME.key (0600) and NAME.pub.", MISSING)


@dataclass(frozen=True, kw_only=True)
class TrustFlags(ViewFlags):
    """The key to trust or to remove."""

    key: Path | None = argument("[FILE.pub]", "A public key, as PEM.")
    remove: str | None = flag(
        "--remove NAME",
        "Remove a trusted key, by its name or the beginning of its fingerprint.",
    )


def models_keygen(flags: KeygenFlags) -> int:
    """Makes a pair of Ed25519 keys. Keep NAME.key secret; carry NAME.pub to those who import.

    The public key has to come by another way than the bundles: compare the fingerprint by phone.
    """
    from capt_local.bundles.sign import new_key

    screen = Screen.standard(flags.verbose)
    private, public, fingerprint = new_key(flags.output)
    screen.line(f"private key  {private}\npublic key   {public}\nfingerprint  {fingerprint}")
    return ExitCode.OK


def models_trust(flags: TrustFlags) -> int:
    """Installs a public key for this user: bundles that it has signed are accepted from now on.

    With --remove, a key that this user trusts is deleted again, and counts no more for bundles that
    were imported with it. These stay installed.
    """
    from capt_local.bundles.sign import install, uninstall

    screen = Screen.standard(flags.verbose)
    if (flags.key is None) == (flags.remove is None):
        raise UsageError("Give either FILE.pub, or --remove NAME.")
    folder = key_folders()[-1]
    if flags.key is None:
        key, bundles = uninstall(flags.remove or "", folder)
        screen.line(f"not trusted any more: {key.name} {key.fingerprint}")
        if bundles:
            screen.note(f"note: its bundles are still installed: {', '.join(bundles)}.")
        return ExitCode.OK
    screen.line(f"trusted from now on: {install(flags.key, folder).fingerprint}")
    limits = read_site().limits
    if limits.forbids(Feature.UNSIGNED):
        screen.note(f"note: {limits.file} forbids bundles that no key of the site has signed.")
    return ExitCode.OK
