"""`models list`, `show`, `verify`, `remove`."""

from __future__ import annotations
