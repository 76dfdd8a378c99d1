"""The folders with bundles that the files name, for as long as a verb runs.

They are handed on in the environment, where the store and every process that is started look for
them; a variable that the user has set wins, as everywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

VARIABLE = "CAPT_LOCAL_MODELS"  # as `bundles.store` has it, which is not loaded for that


@contextlib.contextmanager
def handed_on(folders: Sequence[str]) -> Iterator[None]:
    """Puts folders where the store looks for bundles, until the end of the block.

    Args:
        folders: from the root on; without any, nothing is changed.
    """
    if not folders or os.environ.get(VARIABLE):
        yield
        return
    os.environ[VARIABLE] = os.pathsep.join(folders)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
