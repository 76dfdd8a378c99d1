"""How the digests of a bundle are checked."""

from __future__ import annotations

from enum import StrEnum


class Check(StrEnum):
    """How the digests of a bundle are checked.

    `cached` reads a file of an installed bundle once and then only if it has changed; files of
    other bundles are read each time.
    """

    ALWAYS = "always"
    CACHED = "cached"
    NEVER = "never"
