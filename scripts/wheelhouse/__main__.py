"""Makes a folder from which capt-local installs on machines without a network.

    scripts/build_wheelhouse.sh -o /media/stick/capt-local --key hospital.key --bundle our-trio

It holds every wheel for this Python and this kind of machine, a requirements file with their
hashes, a bill of materials, the signed bundle, the public key, an installer that needs Python
alone, and the digests of all of it. docs/airgap.md says how it is used. This Python has to have
what capt-local needs (pip install .), but for --binding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capt_local.errors import CaptError
from scripts.wheelhouse.install import SUMS, fingerprint, sha256
from scripts.wheelhouse.wheels import (
    NotBuilt,
    bill_of_materials,
    binding_wheel,
    call,
    check_library,
    cpu_features,
    pip,
    read_wheels,
    requirements,
)

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAME = "capt-local"
_SPACE = 1.6  # what pip compiles and how disks round up, on top of what the wheels hold


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def make(given: argparse.Namespace, stick: Path, scratch: Path) -> str:
    """Fills an empty folder; returns the fingerprint of the key.

    Raises:
        NotBuilt: something is missing or fails; says what.
        CaptError: key or bundle cannot be used; says why.
    """
    from cryptography.hazmat.primitives import serialization

    from capt_local.bundles import archive, store
    from capt_local.bundles.sign import new_key, read_private
    from capt_local.bundles.verify import verify
    from capt_local.policy import signed

    # What can be wrong before the binding is built.
    check_library()
    key, new = given.key or given.new_key, given.key is None
    there = any(map(os.path.lexists, (key, key.with_suffix(".pub"))))
    if new and (there or not os.access(key.parent, os.W_OK)):
        raise NotBuilt(f"{key} and its .pub are there already, or cannot be made.")
    private = None if new else read_private(key)
    say(f"looking at the bundle {given.bundle}")
    bundle = signed(store.find(given.bundle))
    verify(bundle)

    wheel = binding_wheel(PROJECT, given.wheel, say)
    say("collecting the wheels")
    folder = stick / "wheels"
    folder.mkdir()
    constraints = scratch / "constraints.txt"
    constraints.write_text(f"llama-cpp-python @ {wheel.resolve().as_uri()}\n", "utf-8")
    extras = f"[{','.join(given.extra)}]" if given.extra else ""
    pip("wheel", f"--wheel-dir={folder}", f"--constraint={constraints}", f"{PROJECT}{extras}")
    pip("wheel", f"--wheel-dir={folder}", "--no-deps", "pip")
    wheels = read_wheels(folder)
    (stick / "requirements.txt").write_text(requirements(wheels), "utf-8")
    flags = os.environ.get("CMAKE_ARGS", "")
    bill = bill_of_materials(NAME, wheels, bundle, flags)
    (stick / "sbom.cdx.json").write_text(bill, "utf-8")
    for name in ("install.sh", "install.py"):
        shutil.copyfile(HERE / name, stick / name)
    shutil.copyfile(PROJECT / "docs" / "airgap.md", stick / "README.md")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (stick / "python-version").write_text(version + "\n", "utf-8")
    sealed, public = f"bundle/{bundle.id}.capt", f"keys/{key.stem}.pub"
    about: dict[str, Any] = {
        "version": next(wheel.version for wheel in wheels if wheel.name == NAME),
        "implementation": sys.implementation.name,
        "python": version,
        "system": platform.system(),
        "machine": platform.machine(),
        # Wheels that were built here need a C library that is not older than the one here.
        "libc": list(platform.libc_ver()),
        "processor": [] if given.wheel else [name.lower() for name in cpu_features()],
        "binding": {"wheel": wheel.name, "cmake_args": flags},
        "next": "demo" if bundle.id == "demo" else f"chat -m {bundle.id}",
        "space": int(_SPACE * sum(wheel.unpacked for wheel in wheels)),
        "bundle": sealed,
        "key": public,
    }
    (stick / "wheelhouse.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    say("trying the wheels: an install without an index")
    write_sums(stick)
    call(["sh", str(stick / "install.sh"), "--program-only", "--to", str(scratch / "trial")],
        PYTHON=sys.executable)  # fmt: skip

    say(f"exporting the bundle {bundle.id}")
    if private is None:
        private = read_private(new_key(key)[0])
    for each in (sealed, public):
        (stick / each).parent.mkdir()
    archive.export(bundle, stick / sealed, private)
    (stick / sealed).chmod(0o644)  # whoever installs has to read it
    (stick / public).write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    write_sums(stick)
    # The bytes of the file are signed as they are, so that openssl can check it: lines of digests,
    # which no manifest begins with, so neither signature passes for the other.
    (stick / f"{SUMS}.sig").write_bytes(private.sign((stick / SUMS).read_bytes()))
    return fingerprint(stick / public)


def write_sums(stick: Path) -> None:
    """Lines that `sha256sum -c` reads."""
    files = [path for path in sorted(stick.rglob("*")) if path.is_file() and path.name != SUMS]
    lines = [f"{sha256(path)}  ./{path.relative_to(stick).as_posix()}\n" for path in files]
    (stick / SUMS).write_text("".join(lines), "ascii")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="build_wheelhouse.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="DIR", help="the folder; made here")
    text = "only the wheel of the binding, into this folder: pip install --find-links DIR ."
    add("--binding", type=Path, metavar="DIR", help=text)
    add("--bundle", default="demo", metavar="NAME|PATH", help="which bundle goes with it (demo)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key", type=Path, metavar="NAME.key", help="of models keygen; it signs")
    keys.add_argument("--new-key", type=Path, metavar="NAME.key", help="makes that key and signs")
    add("--wheel", type=Path, metavar="FILE", help="a wheel of the binding built elsewhere")
    text = "an extra of the package, such as eval; may be repeated"
    add("--extra", action="append", default=[], metavar="NAME", help=text)
    found = parser.parse_args(given)
    if found.binding is None and (found.output is None or not (found.key or found.new_key)):
        parser.error("give --output and either --key or --new-key, or --binding alone")
    if (found.key or found.new_key or Path("x.key")).suffix != ".key":
        parser.error("the name of the key has to end in .key")
    return found


def run(given: argparse.Namespace) -> None:
    """Makes the folder whole, or not at all.

    Raises:
        NotBuilt: something is missing or fails; says what.
    """
    if given.binding is not None:
        given.binding.mkdir(parents=True, exist_ok=True)
        made = shutil.copy(binding_wheel(PROJECT, given.wheel, say), given.binding)
        print(f"{made}\nthere  pip install --find-links {given.binding} .")
        return
    place = Path(os.path.abspath(given.output))
    if os.path.lexists(place):
        raise NotBuilt(f"{place} is there already; nothing was made.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # On the same disk, in a folder that nobody has and that goes at the end.
        above = tempfile.TemporaryDirectory(
            prefix=f"{place.name}.", suffix=".part", dir=place.parent, ignore_cleanup_errors=True
        )
        with above, tempfile.TemporaryDirectory() as scratch:
            draft = Path(above.name, place.name)
            draft.mkdir()
            fingerprint = make(given, draft, Path(scratch))
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
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing here: pip install {PROJECT}.", file=sys.stderr)
        return 1
    except (NotBuilt, CaptError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
