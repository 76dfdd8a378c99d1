"""Opening the models of a bundle: all of them, or none.

Models of one file share its weights: two experts that were trained from one base need it in memory
once, with a KV cache for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from capt_local.engine.header import read_header
from capt_local.engine.library import library
from capt_local.engine.llama import LlamaModel
from capt_local.engine.memory import MemoryEstimate, check_fits, estimate
from capt_local.engine.options import LoadOptions
from capt_local.engine.weights import Weights


def open_models(
    files: Mapping[str, Path],
    options: LoadOptions,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, LlamaModel]:
    """Loads models that have to fit into the memory together.

    Args:
        files: by role; roles of one file share its weights.
        options: of each.
        progress: called with a role and the share of its file that is loaded; of roles that share
            a file, with the first.

    Raises:
        ModelError: a file is missing or broken.
        MemoryShortage: they do not fit.
    """
    needed = estimates(files, options)
    if not any(device.is_gpu for device in library().devices()):
        check_fits(needed)  # beside a GPU each model is weighed as it is loaded
    models: dict[str, LlamaModel] = {}
    try:
        for path, roles in _by_file(files).items():
            report = None if progress is None else partial(progress, roles[0])
            with Weights(path, options, report, contexts=len(roles)) as weights:
                for role in roles:
                    models[role] = LlamaModel(weights, options, name=role)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return {role: models[role] for role in files}


def estimates(files: Mapping[str, Path], options: LoadOptions) -> dict[str, MemoryEstimate]:
    """What each model takes in memory, by role; shared weights count for the first role alone.

    Raises:
        ModelError: a file is missing or broken.
    """
    needed: dict[str, MemoryEstimate] = {}
    for path, (first, *others) in _by_file(files).items():
        needed[first] = estimate(read_header(path), options)
        shared = dataclasses.replace(needed[first], weights=0)
        needed |= dict.fromkeys(others, shared)
    return {role: needed[role] for role in files}


def vocabulary_notices(models: Mapping[str, LlamaModel]) -> list[str]:
    """What the user should know about the vocabularies of each expert and its base."""
    told: list[str] = []
    for role, expert in models.items():
        other = role.replace("expert", "base")
        if other == role or other not in models:
            continue
        if not expert.vocabulary.same_as(models[other].vocabulary):
            told.append(
                f"{role.capitalize()} and {other} have different vocabularies: the contrast also "
                "holds the difference of their tokens and is less sharp."
            )
    return told


def _by_file(files: Mapping[str, Path]) -> dict[Path, list[str]]:
    """The roles of each file, in their order."""
    found: dict[Path, tuple[Path, list[str]]] = {}
    for role, path in files.items():
        # A link and what it points to are one file; errors name it as it was given.
        found.setdefault(path.resolve(), (path, []))[1].append(role)
    return dict(found.values())
