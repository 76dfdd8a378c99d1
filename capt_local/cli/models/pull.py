"""`capt-local models pull`: a bundle from a hub. The one verb that uses the network."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.models.manage import mebibytes, size_of
from capt_local.cli.models.travel import examine, reference
from capt_local.cli.options import ViewFlags, option
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.hub import Recipe
    from capt_local.bundles.manifest import Bundle

TOKEN = "CAPT_LOCAL_HUB_TOKEN"
_LIBRARY_TOKEN = "HF_TOKEN"


@dataclass(frozen=True, slots=True)
class PullFlags:
    """What is fetched, from where, and on which terms."""

    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|FILE.toml]",
            help="The name of a recipe, or one of your own; without, all are listed.",
            show_default=False,
        ),
    ] = None
    mirror: Annotated[
        str | None,
        option("--mirror", twin="MIRROR", metavar="URL", help="Asks this mirror of the hub."),
    ] = None
    offline: Annotated[
        bool, option("--offline", twin="OFFLINE", help="Forbids every use of the network.")
    ] = False
    accept_licence: Annotated[
        list[str] | None,
        option(
            "--accept-licence",
            metavar="NAME",
            help="Accepts a licence; once for each. Without, you are asked on a terminal.",
        ),
    ] = None
    dry_run: Annotated[
        bool, option("--dry-run", help="Asks the hub and tells what would be fetched.")
    ] = False
    allow_older: Annotated[
        bool,
        option("--allow-older", help="Takes a version that is not newer than the installed one."),
    ] = False
    hf_token: Annotated[
        bool,
        option("--hf-token", help=f"Sends the token in {_LIBRARY_TOKEN}; else {TOKEN}'s, if any."),
    ] = False


def models_pull(what: PullFlags, view: ViewFlags) -> int:
    """Fetches the models of a recipe from a hub and installs them as a bundle.

    Each file is checked against its SHA-256 before it counts. What a recipe does not pin is pinned
    at the first use. After a cut, the same command goes on where it was. Nothing is sent but
    requests for these files; gated models are explained and not fetched.
    """
    from capt_local.bundles import hub
    from capt_local.bundles.install import Terms, import_from

    screen = Screen.standard(view.verbose)
    if what.recipe is None:
        _show_recipes(screen)
        return ExitCode.OK
    recipe = hub.find_recipe(what.recipe)
    if recipe.by_hand:
        raise ModelError(f"{recipe.title}. This one is not fetched: {recipe.by_hand}")
    limits = read_site().limits
    limits.refuse(Feature.PULL, "models pull")
    limits.refuse(Feature.UNSIGNED, "A bundle that models pull makes, which nobody has signed,")
    if what.offline:
        raise UsageError("models pull uses the network, which --offline (or its twin) forbids.")
    try:
        importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError("models pull needs more: pip install 'capt-local[pull]'.") from None
    name = _LIBRARY_TOKEN if what.hf_token else TOKEN
    token = os.environ.get(name) or None
    if what.hf_token and token is None:
        raise UsageError(f"--hf-token is given, but {_LIBRARY_TOKEN} is not in the environment.")

    def look(bundle: Bundle) -> None:
        examine(bundle, screen)

    with hub.Hub(what.mirror, token) as opened:
        planned, notes = hub.plan(recipe, opened)
        screen.notes(notes)
        if what.dry_run:
            _show(planned, screen)
            return ExitCode.OK
        _accept(recipe, planned, what.accept_licence or [], screen)
        try:
            source = hub.HubSource(opened, planned, screen.progress)
            terms = Terms({}, unsigned=True, older=what.allow_older)
            found = import_from(source, terms, look)
        except KeyboardInterrupt:
            screen.note("note: what is there stays; give the same command again to go on.")
            raise
        finally:
            screen.clear_progress()
    bundle = found.bundle
    screen.notes(bundle.notices)
    if found.resumed:
        screen.note(f"note: {found.resumed >> 20:,} MiB were there of an earlier try.")
    _show(planned, screen)
    leads = reference(bundle, screen)
    done = "is installed" if found.fresh else "was installed already, and is whole"
    screen.line(f"{bundle.id} {bundle.version} {done}.")
    screen.line(f"How its models fit: capt-local models show {leads}")
    screen.line(f"Use it with: capt-local generate -m {leads}")
    return ExitCode.OK


def _accept(recipe: Recipe, planned: Bundle, given: list[str], screen: Screen) -> None:
    """Goes on only when somebody has accepted every licence by its name.

    Raises:
        ModelError: one is not accepted.
    """
    from capt_local.bundles.hub import licences

    known = {word.lower() for word in given}
    missing = {word: of for word, of in licences(planned.models).items() if word not in known}
    if not missing:
        return
    for word, roles in missing.items():
        where = "; ".join(
            f"{role}: {recipe.models[role].weights}, from {recipe.models[role].repository}"
            for role in roles
        )
        screen.note(f"licence {word} ({where})")
    screen.note("Its text is in the repository; 'not-stated' means that nobody gives you a right.")
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if stdin is not None and stdin.isatty() and screen.asides_on_terminal:  # else nothing waits
        screen.note(f"Type 'accept' to accept {', '.join(missing)}:")
        if stdin.readline(80).strip().lower() == b"accept":
            return
    flags = " ".join(f"--accept-licence {word}" for word in missing)
    raise ModelError(f"Nothing was fetched: accept what you have read with {flags}.")


def _show_recipes(screen: Screen) -> None:
    from capt_local.bundles.hub import recipes

    rows = []
    for each in recipes():
        licences = ", ".join(sorted({part.licence for part in each.models.values()}))
        pinned = all(part.sha256 for part in each.models.values())
        known = "by hand" if each.by_hand else ("pinned" if pinned else "at first use")
        rows.append((each.id, each.title, licences, known))
    screen.show(Table("Recipes", tuple(rows), ("name", "what it is", "licences", "digests")))
    screen.line("What a recipe does: capt-local models pull NAME --dry-run")


def _show(planned: Bundle, screen: Screen) -> None:
    for role, model in planned.models.items():
        rows = {
            "licence": model.licence,
            "source": model.source,
            "sha256": model.sha256 or "",
            "size": mebibytes(model.size),
        }
        screen.show(Table(role, tuple(rows.items())))
    screen.line(f"{mebibytes(size_of(planned))} in all.")
