"""Where a model of a bundle came from, as its manifest says it, and read back from there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.hub.choice import Chosen
from capt_local.hub.part import Part

_WRITTEN = re.compile(r"hub:([^@\s]+)@([0-9a-f]{40})/(\S+)")


def written(chosen: Chosen) -> str:
    """The source of a file, without the hub's own address: mirrors have the same files."""
    return f"hub:{chosen.part.repository}@{chosen.commit}/{chosen.file}"


def is_of(model: ModelFile, part: Part) -> bool:
    """Whether a model was fetched as a part says, as far as that says it."""
    found = _WRITTEN.fullmatch(model.source)
    return (
        found is not None
        and found[1] == part.repository
        and part.names(found[3])
        and part.revision in (None, found[2])
        and part.sha256 in (None, model.sha256)
        and part.style is model.style
    )


def remembered(part: Part, before: Iterable[Bundle]) -> Part:
    """The part, pinned to what was fetched for it at an earlier time, the first that fits."""
    for bundle in before:
        model = bundle.models.get(part.role)
        if model is not None and is_of(model, part):
            found = _WRITTEN.fullmatch(model.source)
            assert found is not None
            return replace(part, revision=found[2], file=found[3], sha256=model.sha256)
    return part
