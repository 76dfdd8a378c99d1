"""A pull: the files that were chosen, the bundle that they make, and its way into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.archive import open_file
from capt_local.bundle.create import manifest_text
from capt_local.bundle.manifest import MANIFEST, Bundle, ModelFile, Role
from capt_local.bundle.manifest_file import LARGEST_MANIFEST, parse_manifest
from capt_local.bundle.store import check_id
from capt_local.bundle.transfer import Imported, Report, Terms, import_from
from capt_local.errors import ModelError
from capt_local.hub import origin
from capt_local.hub.choice import Chosen, Known, choose
from capt_local.hub.listing import Listing, read_listing
from capt_local.hub.recipe import Recipe
from capt_local.hub.source import HubSource
from capt_local.hub.web import Web


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull will do.

    Attributes:
        recipe: that it follows, with all pins.
        chosen: the files by role.
        notes: what the user should be told.
    """

    recipe: Recipe
    chosen: Mapping[Role, Chosen]
    notes: tuple[str, ...] = ()

    @property
    def licences(self) -> dict[str, list[Role]]:
        """The licences that have to be accepted, each with the roles that it is of."""
        found: dict[str, list[Role]] = {}
        for role, chosen in self.chosen.items():
            for word in chosen.licences:
                found.setdefault(word.casefold(), []).append(role)
        return found

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum({each.sha256: each.size for each in self.chosen.values()}.values())

    @property
    def files(self) -> dict[str, Chosen]:
        """The files by their names in the bundle; one that several models share, once."""
        names = {each.sha256: f"{role}.gguf" for role, each in reversed([*self.chosen.items()])}
        return {names[each.sha256]: each for each in self.chosen.values()}

    def manifest(self) -> bytes:
        """Of the bundle; the same files, the same bytes."""
        recipe, folder = self.recipe, Path()
        names = {each.sha256: name for name, each in self.files.items()}
        models = {
            role: ModelFile(
                role=role,
                path=folder / names[each.sha256],
                size=each.size,
                sha256=each.sha256,
                licence=each.licence,
                source=origin.written(each),
                style=each.part.style,
            )
            for role, each in self.chosen.items()
        }
        weights = "; ".join(f"{role}: {each.part.weights}" for role, each in self.chosen.items())
        bundle = Bundle(
            id=recipe.id,
            models=models,
            title=recipe.title,
            version=recipe.version,
            licence=", ".join(self.licences),
            description=recipe.description,
            context=recipe.context,
            card={**recipe.card, "foundation_models": weights},
        )
        check_id(bundle)
        return manifest_text(bundle, folder).encode("utf-8")


def plan(recipe: Recipe, web: Web) -> Plan:
    """Asks the hub for all parts; nothing is fetched.

    Args:
        recipe: with what the user pins.
        web: the hub.

    Raises:
        ModelError: a part is not to be had as it is asked for.
    """
    before = [each for each in (trying(recipe.id), installed(recipe.id)) if each is not None]
    listings: dict[tuple[str, str | None], Listing] = {}
    chosen: dict[Role, Chosen] = {}
    for role, said in recipe.parts.items():
        part = origin.remembered(said, before)
        key = part.repository, part.revision
        if key not in listings:
            listings[key] = read_listing(web.listing(*key), part.repository)
        found = choose(part, listings[key])
        earlier = part.sha256 is not None and said.sha256 is None
        chosen[role] = replace(found, known=Known.EARLIER) if earlier else found
    notes = tuple(note for each in chosen.values() for note in each.notes)
    return Plan(recipe, chosen, notes + tuple(_first_uses(chosen.values())))


def pull(
    planned: Plan,
    web: Web,
    examine: Callable[[Bundle], None],
    *,
    older: bool = False,
    report: Report | None = None,
) -> Imported:
    """Fetches the files into the store, by the way of every import.

    Args:
        planned: what is fetched.
        web: the hub.
        examine: looks into the models when they are there; raises to refuse them.
        older: whether a version is taken that is not newer than the installed one.
        report: called with a file's name and the share of it that is there.

    Raises:
        ModelError: a file is not to be had, or is not the one that was chosen, or the disk is too
            small; the store is what it was.
    """
    manifest = planned.manifest()
    there = trying(planned.recipe.id)
    if there is not None and _bytes(_incoming(planned.recipe.id)) != manifest:
        web.tell("note: what is there of an earlier try is of other files, and goes.")
    source = HubSource(web, manifest, planned.files)
    try:
        return import_from(source, Terms({}, unsigned=True, older=older), examine, report)
    finally:
        source.close()


def fulfils(bundle: Bundle, recipe: Recipe) -> bool:
    """Whether an installed bundle is what a recipe with its pins would make."""
    same = bundle.version == recipe.version and bundle.models.keys() == recipe.parts.keys()
    return same and all(
        origin.is_of(bundle.models[role], part) for role, part in recipe.parts.items()
    )


def installed(name: str) -> Bundle | None:
    """The bundle of that name in the user's own store."""
    return _read(store.user_folder() / name / MANIFEST)


def trying(name: str) -> Bundle | None:
    """The bundle of that name that an earlier pull has begun."""
    return _read(_incoming(name))


def _incoming(name: str) -> Path:
    return store.staging_folder() / name / MANIFEST


def _read(manifest: Path) -> Bundle | None:
    """A manifest that was written here; what cannot be read is as good as none."""
    try:
        return parse_manifest(_bytes(manifest), manifest, present=False)
    except ModelError:
        return None


def _bytes(file: Path) -> bytes:
    with open_file(file) as stream:
        return stream.read(LARGEST_MANIFEST + 1)


def _first_uses(chosen: Iterable[Chosen]) -> list[str]:
    return [
        f"FIRST USE of the {each.part.role}: nobody has vouched for {each.part.repository} "
        f"{each.file}. Commit and digest are what the hub says now, and are pinned in the bundle; "
        "compare them with another source before you rely on it."
        for each in chosen
        if each.known is Known.FIRST_USE
    ]
