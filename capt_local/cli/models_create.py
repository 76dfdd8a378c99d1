"""`capt-local models create` and `models pull`: a bundle of models that lie anywhere, or on a hub.

`models pull` is the one verb that uses the network.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.cli.exits import ExitCode
from capt_local.cli.models import described, examine, finished, mebibytes
from capt_local.cli.options import ViewFlags, argument, flag
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.report.terminal import Screen
from capt_local.report.views import Table
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import Bundle, ModelFile


_LONGEST = 200
_LICENCE = ("general.license.name", "general.license")
_SOURCE = (
    "general.repo_url",
    "general.url",
    "general.source.repo_url",
    "general.source.url",
    "general.source.huggingface.repository",
)


@dataclass(frozen=True, kw_only=True)
class CreateFlags(ViewFlags):
    """Id, models and licence of the new bundle."""

    id: str = argument("ID", "A short name for the bundle.", MISSING)
    target: str | None = flag("--target GGUF", "The target.")
    expert: list[str] | None = flag("--expert GGUF", "The clinical expert; once for each pair.")
    base: list[str] | None = flag(
        "--base GGUF", "What the expert was trained from; in the order of the experts."
    )
    expert_adapter: list[str] | None = flag(
        "--expert-adapter GGUF[=SCALE]",
        "A LoRA adapter for each expert; without --expert, of the base.",
    )
    replace: bool = flag("--replace", "Replace a bundle that is there already.", False)
    version: str = flag("--version N.N", "Of the bundle. Default: 1.", "1")
    licence: str | None = flag("--licence TEXT", "Of the models whose files name none.")
    allow_misfit: bool = flag(
        "--allow-misfit", "Allow an expert and base with different vocabularies.", False
    )


def models_create(flags: CreateFlags) -> int:
    """Makes a bundle of a target, an expert and its base: a manifest with the digest of each file.

    Each file is loaded once in a process of its own; expert and base must have one vocabulary. A
    model without a chat template gets the style "raw". All else in bundle.toml (title, defaults,
    context, card) is yours to edit before you sign it with 'models export --key'.

    Examples:
      capt-local models create heart --target qwen.gguf --expert med.gguf --base llama.gguf

      capt-local models create heart --target qwen.gguf --base llama.gguf --expert-adapter lora.gguf
    """
    from capt_local.bundles.install import install_path, new_staging, write_manifest

    unsigned = "A bundle that models create makes, which nobody has signed,"
    read_site().limits.refuse(Feature.UNSIGNED, unsigned)
    screen = Screen.standard(flags.verbose)
    place = install_path(flags.id, replace=flags.replace)
    planned = _planned(flags)
    with new_staging(place) as staging:
        put, notes = _collect(planned, staging.folder, flags, screen)
        write_manifest(put, staging.folder)
        staging.install()
    screen.notes(notes)
    finished(place, "made", screen)
    return ExitCode.OK


def _planned(flags: CreateFlags) -> Bundle:
    """The bundle as far as flags and headers decide it."""
    from capt_local.bundles.manifest import AdapterFile, Bundle, version_numbers

    if flags.target is None or not flags.base or not (flags.expert or flags.expert_adapter):
        raise UsageError(
            "A bundle is made of a --target, an --expert (or --expert-adapter) and its --base."
        )
    if version_numbers(flags.version) is None:
        raise UsageError("--version is numbers with dots, as in 1.2, so that it can travel.")
    if not (flags.licence or "x").isprintable():
        raise UsageError("--licence holds control characters.")
    adapters = [AdapterFile.parse(given) for given in flags.expert_adapter or ()]
    bundle = Bundle.from_paths(flags.target, flags.expert, flags.base, adapters)
    about: dict[str, Any] = {"id": flags.id, "version": flags.version, "requires": __version__}
    return _with_headers(replace(bundle, notices=(), **about), flags)


def _with_headers(bundle: Bundle, flags: CreateFlags) -> Bundle:
    """The bundle with metadata of its GGUF headers: licence, source, style, tokenizer digest."""
    from capt_local.bundles.manifest import Style
    from capt_local.llama.gguf_header import check_adapter, file_digests, read_header

    models = {}
    for role, model in bundle.models.items():
        try:
            header = read_header(model.path)
            digests = file_digests(model.path, header)
            adapters = []
            for adapter in model.adapters:
                check_adapter(adapter.path, header, model.path.name)
                about = _about(f"{role}'s adapter", read_header(adapter.path).values, flags)
                adapters.append(replace(adapter, **about))
        except ModelError as error:
            raise ModelError(f"The {role}: {error}") from None
        models[role] = replace(
            model,
            **_about(role, header.values, flags),
            style=Style.CHAT if digests.template else Style.RAW,
            template_sha256=digests.template,
            tokenizer_sha256=digests.tokenizer,
            adapters=tuple(adapters),
        )
    for expert, base in bundle.pair_roles:  # found before files of many gigabytes are copied
        ours, theirs = models[expert], models[base]
        if os.path.samefile(ours.path, theirs.path) and not any(one.scale for one in ours.adapters):
            raise ModelError(
                f"The {expert} and its {base} are the same model, so nothing would be contrasted. "
                f"Give the model that the {expert} was trained from as {base}."
            )
    bundle = replace(bundle, models=models)
    licences = dict.fromkeys(file.licence for _, file in bundle.files)
    return replace(bundle, licence="; ".join(licences), title=bundle.id)


def _about(name: str, values: Mapping[str, object], flags: CreateFlags) -> dict[str, Any]:
    """Licence and source of a model or adapter, as its file names them."""
    found = {}
    for field, keys in (("licence", _LICENCE), ("source", _SOURCE)):
        found[field] = next((text for key in keys if (text := _plain(values.get(key)))), "")
    found["licence"] = found["licence"] or flags.licence or ""
    if not found["licence"]:
        raise UsageError(
            f"The licence of the {name} is not known: its file names none. Give --licence TEXT for "
            "all whose files name none; bundle.toml can be edited afterwards."
        )
    return found


def _collect(
    planned: Bundle, folder: Path, flags: CreateFlags, screen: Screen
) -> tuple[Bundle, list[str]]:
    """Assembles the files and probes each; also returns notes for the user."""
    from capt_local.bundles.archive import members
    from capt_local.bundles.install import assemble
    from capt_local.model_checks import check_tokenizers

    try:
        put, linked = assemble(
            planned, folder, lambda name, part: screen.progress(f"reading {name}", part)
        )
        members(put)  # refuses an expert that is its base
        examine(put, screen)
    finally:
        screen.clear_progress()
    check_tokenizers(put.models.values())
    notes = []
    for expert, fit in described(put)["fit"].items():
        if not (fit["same_vocabulary"] or flags.allow_misfit):
            raise ModelError(
                f"The {expert} and its {fit['base']} have different vocabularies, so the contrast "
                "would also hold the difference of their tokens. Give the model that the expert "
                "was trained from, or --allow-misfit."
            )
        notes += [
            f"The {expert} and its {fit['base']} differ in their {name}: the contrast also holds "
            "that difference."
            for name in ("vocabulary", "template", "quantization")
            if not fit[f"same_{name}"]
        ]
    if linked:
        notes.append(
            f"{', '.join(linked)} share their bytes with the files that were given: do not "
            "write into those."
        )
    return put, notes


def _plain(text: object) -> str:
    """A text of a file as one line of printable characters, cut where it is long."""
    if not isinstance(text, str):
        return ""
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())[:_LONGEST]


@dataclass(frozen=True, kw_only=True)
class PullFlags(ViewFlags):
    """What is downloaded, and on which terms."""

    recipe: str | None = argument(
        "[RECIPE|FILE.toml]", "The name of a recipe, or one of your own; without, all are listed."
    )
    accept_licence: list[str] | None = flag(
        "--accept-licence NAME",
        "Accepts a licence; once for each. Without, you are asked on a terminal.",
    )
    dry_run: bool = flag("--dry-run", "Query the hub and show what would be downloaded.", False)
    replace: bool = flag("--replace", "Replace a bundle that is there already.", False)


def models_pull(flags: PullFlags) -> int:
    """Downloads the models of a recipe from a Hugging Face hub and installs them as a bundle.

    Each file is checked against its SHA-256, which the recipe or else the hub names. After a cut,
    the same command goes on where it was. HF_ENDPOINT names a mirror, HF_TOKEN a token.
    """
    from capt_local.bundles.hub import download, find_files, find_recipe, recipes
    from capt_local.bundles.install import install_path, new_staging, write_manifest

    screen = Screen.standard(flags.verbose)
    if flags.recipe is None:
        rows = [(one.id, one.title) for one in recipes().values()]
        screen.show(Table("Recipes", tuple(rows), ("name", "what it is")))
        screen.line("What a recipe does: capt-local models pull NAME --dry-run")
        return ExitCode.OK
    recipe = find_recipe(flags.recipe)
    limits = read_site().limits
    limits.refuse(Feature.PULL, "models pull")
    limits.refuse(Feature.UNSIGNED, "A bundle that models pull makes, which nobody has signed,")
    try:
        importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError("models pull needs more: pip install 'capt-local[pull]'.") from None
    place = install_path(recipe.id, replace=flags.replace)
    files = find_files(recipe)
    for role, file in files.items():
        rows = [("weights", recipe.models[role].weights), ("licence", file.licence)]
        rows += [("source", file.source), ("sha256", file.sha256 or "not known")]
        screen.show(Table(role, (*rows, ("size", mebibytes(file.size)))))
        if recipe.models[role].sha256 is None:
            screen.note(
                f"FIRST USE of the {role}: no recipe vouches for this file. Compare commit and "
                "digest with another source before you rely on it."
            )
    if flags.dry_run:
        return ExitCode.OK
    _accept(files, flags.accept_licence or [], screen)
    with new_staging(place) as staging:
        try:
            bundle = download(recipe, files, staging, screen.progress)
            examine(bundle, screen)
        finally:
            screen.clear_progress()
        write_manifest(bundle, staging.folder)
        staging.install()
    finished(place, "installed", screen)
    return ExitCode.OK


def _accept(files: Mapping[str, ModelFile], given: list[str], screen: Screen) -> None:
    """Requires every licence to be accepted by name. Raises ModelError: one is not."""
    words = {word for file in files.values() for word in file.licence.split(" and ")}
    missing = sorted(words - {word.lower() for word in given})
    if not missing:
        return
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if stdin is not None and stdin.isatty() and screen.err_on_terminal:  # else nothing waits
        screen.note(
            f"Licences: {', '.join(missing)}. The texts are in the repositories; 'not-stated' "
            "means that nobody gives you a right. Type 'accept' to accept them:"
        )
        if stdin.readline(80).strip().lower() == b"accept":
            return
    flags = " ".join(f"--accept-licence {word}" for word in missing)
    raise ModelError(f"Nothing was downloaded: accept what you have read with {flags}.")
