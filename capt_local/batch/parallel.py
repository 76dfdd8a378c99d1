"""How many records are answered at once where nobody says: as many as are good and fit."""

from __future__ import annotations

from capt_local.bundle.manifest import Bundle
from capt_local.decoding.options import GenerateOptions
from capt_local.engine.options import LoadOptions

_GOOD = 8  # more gain little on a processor
_GOOD_ON_ONE_CORE = 4
_SHARE = 0.9  # of the free memory; other programs want some, too


def records_at_once(
    bundle: Bundle, options: GenerateOptions, load: LoadOptions, *, cores: int
) -> int:
    """What `--parallel auto` is on this machine now.

    Beside a GPU only the machine's own memory is weighed; a GPU without room says so later.

    Args:
        bundle: whose headers are read.
        options: of the run; its method decides which models are loaded.
        load: how.
        cores: that compute.

    Returns:
        1 to 8.

    Raises:
        ModelError: a model is missing or broken.
    """
    from capt_local.engine.load_models import estimates
    from capt_local.engine.memory import available_memory

    roles = options.method.roles or tuple(bundle.models)
    files = {role: bundle.models[role].path for role in roles if role in bundle.models}
    needed = estimates(files, load, bundle.adapters).values()
    # Each model has a context of its own besides those of the records.
    once = sum(one.total + one.buffers for one in needed)
    each = sum(one.kv_cache for one in needed)
    room = int(available_memory() * _SHARE) - once
    good = _GOOD if cores > 1 else _GOOD_ON_ONE_CORE
    return max(1, min(good, room // each if each else good))
