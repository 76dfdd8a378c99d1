"""Makes a folder from which capt-local installs on machines without a network.

    scripts/build_wheelhouse.sh -o /media/stick/capt-local --key hospital.key --bundle our-trio

It holds every wheel for this Python and this kind of machine, a requirements file with their
hashes, a bill of materials, the signed bundle, the public key, an installer that needs Python
alone, and the digests of all of it. docs/airgap.md says how it is used.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.wheelhouse.binding import Backend, Build, Processor
from scripts.wheelhouse.pip import NotBuilt
from scripts.wheelhouse.stick import Order, make


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="build_wheelhouse.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder; made here")
    add("--bundle", default="demo", metavar="NAME|PATH", help="which bundle goes with it (demo)")
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--key", type=Path, metavar="NAME.key", help="of models keygen; it signs")
    keys.add_argument("--new-key", type=Path, metavar="NAME.key", help="makes that key and signs")
    backends, processors = list(Backend), list(Processor)
    text = "what computes (cpu); cuda needs its toolkit here and its driver here and there"
    add("--backend", type=Backend, choices=backends, default=Backend.CPU, help=text)
    text = "portable (default): any x86-64 with AVX2, any ARM64; native: those like this one"
    add("--cpu", type=Processor, choices=processors, default=Processor.PORTABLE, help=text)
    add("--wheel", type=Path, metavar="FILE", help="a wheel of the binding built elsewhere")
    text = "an extra of the package, such as eval; may be repeated"
    add("--extra", action="append", default=[], metavar="NAME", help=text)
    found = parser.parse_args(given)
    if (found.key or found.new_key).suffix != ".key":
        parser.error("the name of the key has to end in .key")
    return found


def run(given: argparse.Namespace) -> None:
    """Makes the folder whole, or not at all.

    Raises:
        NotBuilt: something is missing or fails; says what.
    """
    place = Path(os.path.abspath(given.output))
    if os.path.lexists(place):
        raise NotBuilt(f"{place} is there already; nothing was made.")
    build = Build(given.backend, given.cpu, given.wheel)
    key = Path(os.path.abspath(given.key or given.new_key))
    order = Order(given.bundle, key, given.new_key is not None, tuple(given.extra), build)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # On the same disk, in a folder that nobody has and that goes at the end.
        with (
            tempfile.TemporaryDirectory(
                prefix=f"{place.name}.",
                suffix=".part",
                dir=place.parent,
                ignore_cleanup_errors=True,
            ) as above,
            tempfile.TemporaryDirectory() as scratch,
        ):
            draft = Path(above, place.name)
            draft.mkdir()
            fingerprint = make(order, draft, Path(scratch))
            draft.rename(place)
    except OSError as error:
        raise NotBuilt(f"{error.filename}: {error.strerror}.") from None
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"{place}: {size / 1e6:,.1f} MB\nfingerprint of the key  {fingerprint}\n"
          f"there  sh install.sh --fingerprint {fingerprint}")  # fmt: skip


def main() -> int:
    """Everything that is foreseen ends with one line."""
    try:
        run(arguments())
    except NotBuilt as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
