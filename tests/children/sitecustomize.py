"""What processes get that tests start: Python imports this by itself when it begins.

The site's file has a fixed place that no variable moves, so its place is changed here, as soon as
the program imports the module that knows it. Sockets are guarded as in the tests themselves.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import socket_guard

PLACES = "capt_local.config"


class Redirect(MetaPathFinder):
    """Gives the module of places another place of the site's file."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != PLACES:
            return None
        sys.meta_path.remove(self)  # so that the module itself is found
        spec = importlib.util.find_spec(PLACES)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            place = Path(os.environ["TESTS_SITE_FILE"])
            module.site_file = lambda: place  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if socket_guard.LOG in os.environ:
    socket_guard.install()
if "TESTS_SITE_FILE" in os.environ:
    sys.meta_path.insert(0, Redirect())
