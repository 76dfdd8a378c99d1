"""Which file it will be: what the recipe says, held against what the hub says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from capt_local.errors import ModelError
from capt_local.hub.listing import HubFile, Listing
from capt_local.hub.part import UNSTATED, Part
from capt_local.hub.refusal import gated


class Known(StrEnum):
    """Why a file is taken for the right one."""

    PINNED = "pinned"
    """Its digest was known before the hub was asked."""
    EARLIER = "as at the first use"
    """Its digest is that of an earlier time."""
    FIRST_USE = "first use: the hub's word alone"
    """The hub's own word, taken and pinned now."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A file that will be fetched.

    Attributes:
        part: of the recipe.
        commit: of the repository, 40 digits.
        file: its path there.
        size: bytes.
        sha256: digest in hexadecimal.
        licence: as the bundle will say it.
        known: why it is taken for the right one.
        notes: what the user should be told.
    """

    part: Part
    commit: str
    file: str
    size: int
    sha256: str
    licence: str
    known: Known
    notes: tuple[str, ...] = ()

    @property
    def licences(self) -> tuple[str, ...]:
        """The words that have to be accepted."""
        return tuple(self.licence.split(_AND))


_AND = " and "


def choose(part: Part, listing: Listing) -> Chosen:
    """The file of a part.

    Raises:
        ModelError: the hub has no such file, several, or another one than is pinned; or it is not
            to be fetched.
    """
    if listing.gated:
        raise gated(part.repository)
    if part.revision not in (None, listing.commit):
        raise ModelError(
            f"{part.repository}: the hub was asked for revision {part.revision} and speaks of "
            f"{listing.commit}."
        )
    name, file = _the_file(part, listing)
    if file.sha256 is not None and part.sha256 not in (None, file.sha256):
        raise ModelError(
            f"{part.repository}: {name} is another file now: its SHA-256 is pinned as "
            f"{part.sha256}, and the hub says {file.sha256}. Nothing was fetched."
        )
    digest = part.sha256 or file.sha256
    if digest is None:
        raise ModelError(
            f"{part.repository}: the hub has no SHA-256 of {name}. Give the one that you know: "
            f"--sha256 {part.role}=..."
        )
    return Chosen(
        part=part,
        commit=listing.commit,
        file=name,
        size=file.size,
        sha256=digest,
        licence=_licence(part, listing),
        known=Known.PINNED if part.sha256 else Known.FIRST_USE,
        notes=tuple(_notes(part, listing)),
    )


def _the_file(part: Part, listing: Listing) -> tuple[str, HubFile]:
    found = sorted(name for name in listing.files if part.names(name))
    if len(found) == 1:
        return found[0], listing.files[found[0]]
    many = f"{len(found)} files of the name" if found else "no file of the name"
    raise ModelError(
        f"{part.repository}: there is {many} {part.file} at {listing.commit[:12]}. A recipe of "
        "your own can name another one."
    )


def _licence(part: Part, listing: Listing) -> str:
    """What the recipe says, and what the repository says where that is another thing."""
    said = listing.licence
    if said is None or said.casefold() == part.licence.casefold():
        return part.licence
    return said if part.licence == UNSTATED else f"{part.licence}{_AND}{said}"


def _notes(part: Part, listing: Listing) -> list[str]:
    found = []
    if listing.repository.casefold() != part.repository.casefold():
        found.append(f"{part.repository} is called {listing.repository} at the hub now.")
    if listing.licence is not None and part.licence not in (UNSTATED, listing.licence):
        found.append(
            f"The {part.role}: the recipe says {part.licence}, its repository {listing.licence}; "
            "both are asked for."
        )
    return found
