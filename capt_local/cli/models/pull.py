"""`capt-local models pull`: a bundle from a hub. The one verb that uses the network."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capt_local.cli.exits import ExitCode
from capt_local.cli.models.manage import mebibytes
from capt_local.cli.models.travel import examine, finished
from capt_local.cli.options import ViewFlags, argument, flag
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.manifest import ModelFile


@dataclass(frozen=True, slots=True)
class PullFlags:
    """What is downloaded, and on which terms."""

    recipe: str | None = argument(
        "[RECIPE|FILE.toml]", "The name of a recipe, or one of your own; without, all are listed."
    )
    accept_licence: list[str] | None = flag(
        "--accept-licence NAME",
        "Accepts a licence; once for each. Without, you are asked on a terminal.",
    )
    dry_run: bool = flag("--dry-run", "Asks the hub and tells what would be downloaded.", False)
    replace: bool = flag("--replace", "Replace a bundle that is there already.", False)


def models_pull(what: PullFlags, view: ViewFlags) -> int:
    """Downloads the models of a recipe from a Hugging Face hub and installs them as a bundle.

    Each file is checked against its SHA-256, which the recipe or else the hub names. After a cut,
    the same command goes on where it was. HF_ENDPOINT names a mirror, HF_TOKEN a token.
    """
    from capt_local.bundles.create import write_manifest
    from capt_local.bundles.hub import download, find_files, find_recipe, recipes
    from capt_local.bundles.install import new_staging, place_for

    screen = Screen.standard(view.verbose)
    if what.recipe is None:
        rows = [(one.id, one.title) for one in recipes().values()]
        screen.show(Table("Recipes", tuple(rows), ("name", "what it is")))
        screen.line("What a recipe does: capt-local models pull NAME --dry-run")
        return ExitCode.OK
    recipe = find_recipe(what.recipe)
    limits = read_site().limits
    limits.refuse(Feature.PULL, "models pull")
    limits.refuse(Feature.UNSIGNED, "A bundle that models pull makes, which nobody has signed,")
    try:
        importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError("models pull needs more: pip install 'capt-local[pull]'.") from None
    place = place_for(recipe.id, replace=what.replace)
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
    if what.dry_run:
        return ExitCode.OK
    _accept(files, what.accept_licence or [], screen)
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
    """Goes on only when every licence is accepted by its name. Raises ModelError: one is not."""
    words = {word for file in files.values() for word in file.licence.split(" and ")}
    missing = sorted(words - {word.lower() for word in given})
    if not missing:
        return
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if stdin is not None and stdin.isatty() and screen.asides_on_terminal:  # else nothing waits
        screen.note(
            f"Licences: {', '.join(missing)}. The texts are in the repositories; 'not-stated' "
            "means that nobody gives you a right. Type 'accept' to accept them:"
        )
        if stdin.readline(80).strip().lower() == b"accept":
            return
    flags = " ".join(f"--accept-licence {word}" for word in missing)
    raise ModelError(f"Nothing was downloaded: accept what you have read with {flags}.")
