"""How many records are answered at once where nobody says: as many as are good and fit."""

from __future__ import annotations

from capt_local.bundle.manifest import Bundle
from capt_local.decode.options import GenerateOptions
from capt_local.engine.options import LoadOptions


def lanes_that_fit(bundle: Bundle, options: GenerateOptions, load: LoadOptions) -> int:
    """Between 1 and 8."""
    return 8
