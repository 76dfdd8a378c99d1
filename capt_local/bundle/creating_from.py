"""What a bundle is to be made of: files, or models of bundles that are here already."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from capt_local.bundle import store
from capt_local.bundle.adapter import AdapterFile
from capt_local.bundle.manifest import Bundle, ModelFile
from capt_local.bundle.roles import Role, adapted, pair_roles, paired, roles
from capt_local.errors import ModelError, UsageError

_OF_A_BUNDLE = re.compile(r"(?P<bundle>.+):(?P<role>target|(?:expert|base)(?:-[0-9]{1,2})?)")


def ingredients(
    target: str,
    experts: Sequence[str],
    bases: Sequence[str],
    adapters: Sequence[AdapterFile],
    find: Callable[[str], Bundle] = store.find,
) -> Bundle:
    """The models, by role, where they lie; of models of other bundles with what these say of them.

    Args:
        target: a file, or BUNDLE:ROLE.
        experts: likewise, one for each pair.
        bases: likewise, in the order of the experts.
        adapters: one for each expert; without experts, each expert is the base with its adapter.
        find: opens another bundle; raises a ModelError for one that is not to be used.

    Raises:
        UsageError: experts, bases and adapters do not go together.
        ModelError: there is no such file, bundle or model, or an expert is its own base.
    """
    given = (target, *paired(adapted(experts, bases, adapters), bases))
    known: dict[Role, ModelFile] = {}
    for role, text in zip(roles(len(given) // 2), given, strict=True):
        if (found := _of_a_bundle(role, text, find)) is not None:
            known[role] = found
    files = [
        known[role].path if role in known else Path(text)
        for role, text in zip(roles(len(given) // 2), given, strict=True)
    ]
    bundle = Bundle.from_paths(files[0], files[1::2], files[2::2], adapters)
    for role, model in known.items():
        own, other = model.adapter, bundle.models[role].adapter
        if own is not None and other is not None:
            raise UsageError(f"The {role} has an adapter in its bundle already; give no other.")
        bundle.models[role] = replace(model, adapter=own or other)
    for number in range(1, bundle.pairs + 1):
        expert, base = (bundle.models[role] for role in pair_roles(number))
        _refuse_twins(expert, base)
    return replace(bundle, notices=())


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _of_a_bundle(role: Role, text: str, find: Callable[[str], Bundle]) -> ModelFile | None:
    """The model of another bundle that is meant; None where a file is."""
    found = _OF_A_BUNDLE.fullmatch(text)
    if found is None or os.path.lexists(text):
        return None
    try:
        bundle = find(found["bundle"])
    except ModelError as error:
        raise ModelError(f"The {role}: {error}") from None
    if found["role"] not in bundle.models:
        have = ", ".join(bundle.models)
        raise ModelError(
            f"The {role}: the bundle {bundle.id} has no {found['role']}; it has {have}."
        )
    return replace(bundle.models[found["role"]], role=role)


def _refuse_twins(expert: ModelFile, base: ModelFile) -> None:
    """Refuses an expert that would say the same as its base."""
    if not same_file(expert.path, base.path) or _adapter(expert) != _adapter(base):
        return
    why = " and an adapter with the scale 0" if expert.adapter else ""
    raise ModelError(
        f"The {expert.role} and the {base.role} are the same file{why}, so nothing would be "
        f"contrasted. Give the model that the {expert.role} was trained from as {base.role}."
    )


def _adapter(model: ModelFile) -> tuple[Path, float] | None:
    adapter = model.adapter
    return (adapter.path.resolve(), adapter.scale) if adapter and adapter.scale else None
