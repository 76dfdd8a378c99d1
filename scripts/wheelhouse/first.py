"""What is looked at before anything is built, which takes minutes: the key and the bundle."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from scripts.wheelhouse.binding import BINDING
from scripts.wheelhouse.pip import NotBuilt, call, pip


def check_place(key: Path, *, new: bool) -> None:
    """Whether a key is there, or can be made there.

    Args:
        key: the private one.
        new: whether it is to be made.

    Raises:
        NotBuilt: no.
    """
    if not new:
        if not key.is_file():
            raise NotBuilt(f"There is no key at {key}. --new-key makes one.")
        return
    for file in (key, key.with_suffix(".pub")):
        if os.path.lexists(file):
            raise NotBuilt(f"{file} is there already; nothing was made.")
    if not os.access(key.parent, os.W_OK | os.X_OK):
        raise NotBuilt(f"{key.parent}, where the key is to lie, is not there or cannot be written.")


def check_content(project: Path, key: Path | None, bundle: str, folder: Path) -> None:
    """Has the capt-local of the checkout look into the key and read the whole bundle.

    Args:
        project: the checkout.
        key: that signs; None for one that is made later.
        bundle: id or path.
        folder: for what capt-local needs, which the Python of this process may not have.

    Raises:
        NotBuilt: one of them will not do.
    """
    # --target goes with no other place that the settings of pip may name.
    pip("install", f"--target={folder}", "--no-compile", *_needs(project), PIP_USER="0")
    python, path = [sys.executable, "-P", "-m"], f"{project}{os.pathsep}{folder}"
    if key is not None:
        call([*python, "scripts.wheelhouse.first", str(key)], PYTHONPATH=path)
    call([*python, "capt_local", "models", "verify", bundle], PYTHONPATH=path)


def _needs(project: Path) -> list[str]:
    """What the package needs but the binding, which does not read bundles."""
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    lines = found["project"]["dependencies"]
    return [line for line in lines if line.partition("==")[0].strip() != BINDING]


def main(key: str) -> int:
    """In another process, which has what capt-local needs."""
    from capt_local.bundles.sign import read_private
    from capt_local.errors import CaptError

    try:
        read_private(Path(key))
    except CaptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
