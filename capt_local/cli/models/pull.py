"""`capt-local models pull`: a bundle from a hub. The one verb that uses the network."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.models.manage import mebibytes, size_of
from capt_local.cli.models.travel import examine, reference
from capt_local.cli.options import ViewFlags, option
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.policy import signed
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.bundles.hub import Hub, Plan
    from capt_local.bundles.manifest import Bundle
    from capt_local.bundles.recipe import Recipe

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
    revision: Annotated[
        list[str] | None,
        option("--revision", metavar="ROLE=COMMIT", help="Pins a repository to 40 digits."),
    ] = None
    sha256: Annotated[
        list[str] | None,
        option("--sha256", metavar="ROLE=DIGEST", help="Pins a file to its SHA-256."),
    ] = None
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
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


def models_pull(what: PullFlags, view: ViewFlags) -> int:
    """Fetches the models of a recipe from a hub and installs them as a bundle.

    Each file is checked against its SHA-256 before it counts. What a recipe does not pin is pinned
    at the first use. After a cut, the same command goes on where it was. Nothing is sent but
    requests for these files; gated models are explained and not fetched.
    """
    from capt_local.bundles.recipe import find_recipe, recipes

    screen = Screen.standard(view.verbose)
    if what.recipe is None:
        show_recipes(recipes(), screen, as_json=what.json)
        return ExitCode.OK
    recipe = find_recipe(what.recipe).pinned(
        _by_role(what.revision, "--revision"), _by_role(what.sha256, "--sha256")
    )
    if recipe.by_hand:
        raise ModelError(f"{recipe.title}. This one is not fetched: {recipe.by_hand}")
    _check_allowed(what)
    try:
        importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError("models pull needs more: pip install 'capt-local[pull]'.") from None
    from capt_local.bundles import hub

    here = hub.installed(recipe.id)
    if here is not None and recipe.fulfilled_by(here):
        return _is_here(signed(here), what, screen)
    with _opened(what) as opened:
        planned = hub.plan(recipe, opened)
        screen.notes(planned.notes)
        if what.dry_run:
            show_plan(planned, screen, as_json=what.json)
            return ExitCode.OK
        _accept(planned, what.accept_licence or [], screen)
        _fetch(planned, opened, what, screen)
    return ExitCode.OK


def _check_allowed(what: PullFlags) -> None:
    limits = read_site().limits
    limits.refuse(Feature.PULL, "models pull")
    limits.refuse(Feature.UNSIGNED, "A bundle that models pull makes, which nobody has signed,")
    if what.offline:
        raise UsageError("models pull uses the network, which --offline (or its twin) forbids.")


def _opened(what: PullFlags) -> Hub:
    from capt_local.bundles.hub import Hub

    name = _LIBRARY_TOKEN if what.hf_token else TOKEN
    token = os.environ.get(name) or None
    if what.hf_token and token is None:
        raise UsageError(f"--hf-token is given, but {_LIBRARY_TOKEN} is not in the environment.")
    return Hub(what.mirror, token)


def _fetch(planned: Plan, opened: Hub, what: PullFlags, screen: Screen) -> None:
    from capt_local.bundles.hub import pull

    def look(bundle: Bundle) -> None:
        examine(bundle, screen)

    try:
        found = pull(planned, opened, look, older=what.allow_older, report=screen.progress)
    except KeyboardInterrupt:
        screen.note("note: what is there stays; give the same command again to go on.")
        raise
    finally:
        screen.clear_progress()
    bundle = found.bundle
    screen.notes(bundle.notices)
    if found.resumed:
        screen.note(f"note: {found.resumed >> 20:,} MiB were there of an earlier try.")
    name = reference(bundle, screen)
    show_plan(planned, screen, as_json=what.json, installed=True)
    if what.json:
        return
    screen.line(f"{bundle.id} {bundle.version} is installed: {mebibytes(size_of(bundle))}.")
    screen.line(f"How its models fit: capt-local models show {name}")
    screen.line(f"Use it with: capt-local generate -m {name}")


def _is_here(bundle: Bundle, what: PullFlags, screen: Screen) -> int:
    from capt_local.bundles.verify import verify

    name = reference(bundle, screen)
    told = (
        f"{bundle.id} {bundle.version} was installed already, and is whole; no hub was contacted."
    )
    if what.dry_run:
        told = (
            f"{bundle.id} {bundle.version} is installed already, so nothing would be fetched. "
            f"Whether it is whole: capt-local models verify {name}"
        )
    else:
        try:
            verify(bundle, lambda role, part: screen.progress(f"reading {role}", part))
        finally:
            screen.clear_progress()
    screen.notes(bundle.notices)
    found = {"id": bundle.id, "installed": True, "fetched": False, "checked": not what.dry_run}
    screen.line(dumps(found) if what.json else told)
    return ExitCode.OK


def _accept(planned: Plan, given: Sequence[str], screen: Screen) -> None:
    """Goes on only when somebody has accepted every licence by its name.

    Raises:
        ModelError: one is not accepted.
    """
    known = {word.casefold() for word in given}
    missing = {word: roles for word, roles in planned.licences.items() if word not in known}
    if not missing:
        return
    for word, roles in missing.items():
        where = "; ".join(
            f"{role}: {planned.chosen[role].part.weights}, "
            f"from {planned.chosen[role].part.repository}"
            for role in roles
        )
        screen.note(f"licence {word} ({where})")
    screen.note("Its text is in the repository; 'not-stated' means that nobody gives you a right.")
    if not _asked(screen, list(missing)):
        flags = " ".join(f"--accept-licence {word}" for word in missing)
        raise ModelError(f"Nothing was fetched: accept what you have read with {flags}.")


def _asked(screen: Screen, missing: Sequence[str]) -> bool:
    """Whether somebody at a terminal accepts by typing the word; never waits elsewhere."""
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    if stdin is None or not stdin.isatty() or not screen.asides_on_terminal:
        return False
    screen.note(f"Type 'accept' to accept {', '.join(missing)}:")
    return stdin.readline(80).strip().lower() == b"accept"


def _by_role(given: Sequence[str] | None, flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        role, equals, value = text.partition("=")
        if not equals or role in found:
            raise UsageError(f"{flag} is given as ROLE=VALUE, once for each role.")
        found[role] = value.strip().lower()
    return found


def show_recipes(found: Sequence[Recipe], screen: Screen, *, as_json: bool) -> None:
    """Writes the recipes to standard output."""
    if as_json:
        screen.line(dumps([_recipe_object(each) for each in found], indent=2))
        return
    rows = tuple(
        (
            each.id,
            each.title,
            ", ".join(sorted({part.licence for part in each.parts.values()})),
            "by hand" if each.by_hand else ("pinned" if each.is_pinned else "at first use"),
        )
        for each in found
    )
    screen.show(Table("Recipes", rows, ("name", "what it is", "licences", "digests")))
    screen.line("What a recipe does: capt-local models pull NAME --dry-run")


def _recipe_object(recipe: Recipe) -> dict[str, Any]:
    return {
        "id": recipe.id,
        "title": recipe.title,
        "version": recipe.version,
        "by_hand": recipe.by_hand or None,
        "pinned": recipe.is_pinned,
        "models": {
            role: {
                "weights": part.weights,
                "licence": part.licence,
                "repository": part.repository or None,
                "file": part.file or None,
                "revision": part.revision,
                "sha256": part.sha256,
            }
            for role, part in recipe.parts.items()
        },
    }


def show_plan(planned: Plan, screen: Screen, *, as_json: bool, installed: bool = False) -> None:
    """Writes to standard output what will be or has been fetched, each file with its pins."""
    found = _as_object(planned, installed=installed)
    if as_json:
        screen.line(dumps(found, indent=2))
        return
    for role, values in found["models"].items():
        rows = {**values, "size": mebibytes(values["size"])}
        screen.show(Table(role, tuple((key.replace("_", " "), str(rows[key])) for key in rows)))
    screen.line(f"{len(planned.files)} files, {mebibytes(planned.size)} in all.")


def _as_object(planned: Plan, *, installed: bool) -> dict[str, Any]:
    return {
        "id": planned.recipe.id,
        "version": planned.recipe.version,
        "installed": installed,
        "fetched": installed,
        "models": {
            role: {
                "weights": each.part.weights,
                "licence": each.licence,
                "repository": each.part.repository,
                "file": each.file,
                "revision": each.commit,
                "sha256": each.sha256,
                "size": each.size,
                "known": each.known,
            }
            for role, each in planned.chosen.items()
        },
        "notes": list(planned.notes),
    }
