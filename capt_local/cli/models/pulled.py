"""How `models pull` shows recipes, and what it fetches or has fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capt_local.cli.models.manage import mebibytes
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from capt_local.hub.plan import Plan
    from capt_local.hub.recipe import Recipe


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
                "known": each.known.value,
            }
            for role, each in planned.chosen.items()
        },
        "notes": list(planned.notes),
    }
