"""Libraries that only evaluations need, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from capt_local.errors import UsageError


def library(name: str) -> Any:
    """A module of the extra `eval`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"This needs {name.split('.')[0]}: pip install 'capt-local[eval]'."
        ) from None
