"""Opening the models of a bundle: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from capt_local.engine.header import read_header
from capt_local.engine.library import library
from capt_local.engine.llama import LlamaModel
from capt_local.engine.memory import MemoryEstimate, check_fits, estimate
from capt_local.engine.options import LoadOptions


def open_models(
    files: Mapping[str, Path],
    options: LoadOptions,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, LlamaModel]:
    """Loads models that have to fit into the memory together.

    Args:
        files: by role.
        options: of each.
        progress: called with a role and the share of its file that is loaded.

    Raises:
        ModelError: a file is missing or broken.
        MemoryShortage: they do not fit.
    """
    needed: dict[str, MemoryEstimate] = {
        role: estimate(read_header(path), options) for role, path in files.items()
    }
    if not any(device.is_gpu for device in library().devices()):
        check_fits(needed)  # beside a GPU each model is weighed as it is loaded
    models: dict[str, LlamaModel] = {}
    try:
        for role, path in files.items():
            report = None if progress is None else partial(progress, role)
            models[role] = LlamaModel.open(path, options, report, name=role)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return models


def vocabulary_notices(models: Mapping[str, LlamaModel]) -> list[str]:
    """What the user should know about the vocabularies of expert and base."""
    proxies = [models[role].vocabulary for role in ("expert", "base") if role in models]
    if len(proxies) < 2 or proxies[0].same_as(proxies[1]):
        return []
    return [
        "Expert and base have different vocabularies: the contrast also holds the difference of "
        "their tokens and is less sharp."
    ]
