"""What a hub says of a repository, as far as it is understood."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelInfo

from capt_local.errors import ModelError
from capt_local.hub.part import COMMIT, REPOSITORY, SHA256, is_file_name
from capt_local.strict.json import parse_object

_WORD = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")
_TAG = "license:"
_MOST = 1 << 50  # bytes of a file


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes:
        size: bytes.
        sha256: digest in hexadecimal, as the hub says; None where it does not.
    """

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one revision.

    Attributes:
        repository: as it is called now.
        commit: 40 digits.
        gated: whether its owner wants to know who takes it.
        licence: one word, as its card says; None where it does not.
        files: those that could be models, by their paths.
    """

    repository: str
    commit: str
    gated: bool
    licence: str | None
    files: Mapping[str, HubFile] = field(default_factory=dict)


def read_listing(data: bytes, asked: str) -> Listing:
    """What the hub's answer says.

    Args:
        data: the answer.
        asked: the repository that was asked for.

    Raises:
        ModelError: it is not understood.
    """
    try:
        info = ModelInfo(**parse_object(data))
        return Listing(
            repository=_matching(REPOSITORY, info.id),
            commit=_matching(COMMIT, info.sha),
            gated=bool(info.gated),
            licence=licence_word(info.card_data, info.tags),
            files=dict(filter(None, map(_file, info.siblings or []))),
        )
    except Exception:
        # The library takes what comes for what it should be, so anything may be raised in it; its
        # messages hold parts of the answer.
        raise ModelError(
            f"{asked}: what the hub says of it is not understood. Is the mirror one of a Hugging "
            "Face hub?"
        ) from None


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError
    return value


def _file(sibling: Any) -> tuple[str, HubFile] | None:
    """One file; None for what is not fetched anyway, whatever its name."""
    name = sibling.rfilename
    if not isinstance(name, str) or not is_file_name(name):
        return None
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < _MOST:
        raise ValueError
    return name, HubFile(size, _matching(SHA256, sibling.lfs.sha256) if sibling.lfs else None)


def licence_word(card: Any, tags: object) -> str | None:
    """The licence that a card names, as one word in small letters; None where it names none.

    Args:
        card: of the repository, as `huggingface_hub` has read it; or None.
        tags: of the repository.
    """
    named = getattr(card, "license", None)
    if named == "other":
        named = getattr(card, "license_name", None) or named
    if named is None and isinstance(tags, list):
        named = [tag[len(_TAG) :] for tag in tags if isinstance(tag, str) and tag.startswith(_TAG)]
    words = named if isinstance(named, list) else [named]
    if not any(words):
        return None
    # Several are one word, so that each is seen; what is no word is still a licence.
    whole = "+".join(str(word).lower().replace(" ", "-") for word in words)
    return whole if _WORD.fullmatch(whole) else "other"
