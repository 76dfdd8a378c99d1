"""Makes a folder from which capt-local installs on machines without a network.

    scripts/build_wheelhouse.sh -o /media/stick/capt-local --key hospital.key --bundle our-trio

It holds every wheel for this Python and this kind of machine, a requirements file with their
hashes, a bill of materials, the signed bundle, the public key, an installer that needs Python
alone, and the digests of all of it. docs/airgap.md says how it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.wheelhouse.install import SUMS, fingerprint
from scripts.wheelhouse.wheels import (
    BINDING,
    Backend,
    Build,
    NotBuilt,
    Processor,
    Wheel,
    binding_wheel,
    call,
    check_given,
    pinned,
    pip,
    read_wheels,
    requirements,
    sha256,
)

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAME = "capt-local"
# What pip compiles and how disks round up, on top of what the wheels hold.
_ROOM = 1.6
# Run by a Python that has what capt-local needs.
_CHECK_KEY = """
import sys
from pathlib import Path
from capt_local.bundles.sign import read_private
from capt_local.errors import CaptError
try:
    read_private(Path(sys.argv[1]))
except CaptError as error:
    sys.exit(f"error: {error}")
"""
# The public half of a key, or a signature that openssl can check. The bytes of the file are signed
# as they are: lines of digests, which no manifest begins with, so neither passes for the other.
_SEAL = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives import serialization as s
what, key, place = sys.argv[1:]
private = s.load_pem_private_key(Path(key).read_bytes(), None)
if what == "public":
    form = s.PublicFormat.SubjectPublicKeyInfo
    Path(place).write_bytes(private.public_key().public_bytes(s.Encoding.PEM, form))
else:
    Path(place + ".sig").write_bytes(private.sign(Path(place).read_bytes()))
"""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted.

    Attributes:
        bundle: id or path of the bundle.
        key: private key that signs; with `new_key` made here.
        new_key: whether.
        extras: of the package, such as "eval".
        build: how the binding is built.
    """

    bundle: str
    key: Path
    new_key: bool
    extras: tuple[str, ...]
    build: Build


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def make(order: Order, stick: Path, scratch: Path) -> str:
    """Fills a folder.

    Args:
        order: what is wanted.
        stick: an empty folder.
        scratch: another one, for what is tried.

    Returns:
        The fingerprint of the key.

    Raises:
        NotBuilt: something is missing or fails; says what.
    """
    _check_first(order, scratch / "first")
    _collect(order, stick / "wheels")
    wheels = read_wheels(stick / "wheels")
    (stick / "requirements.txt").write_text(requirements(wheels), "utf-8")
    _lay_out(order, wheels, stick)
    say("trying the wheels: an install without an index")
    write_sums(stick)
    call(["sh", str(stick / "install.sh"), "--program-only", "--to", str(scratch / "trial")],
        PYTHON=sys.executable)  # fmt: skip
    program = scratch / "trial" / "bin" / NAME
    say(f"exporting the bundle {order.bundle}")
    return _seal(order, stick, program, scratch / "first")


def _check_first(order: Order, folder: Path) -> None:
    """What can be wrong before the binding is built, the cheap things first."""
    check_place(order.key, new=order.new_key)
    check_given(order.build, pinned(PROJECT))
    say(f"looking at the key and the bundle {order.bundle}")
    check_content(PROJECT, None if order.new_key else order.key, order.bundle, folder)


def _collect(order: Order, folder: Path) -> None:
    """Every wheel: the package, what it needs, and the pip that installs them."""
    wheel = binding_wheel(order.build, pinned(PROJECT), say)
    folder.mkdir()
    say("collecting the wheels")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"llama-cpp-python @ {wheel.resolve().as_uri()}\n", "utf-8")
    extras = f"[{','.join(order.extras)}]" if order.extras else ""
    pip("wheel", f"--wheel-dir={folder}", f"--constraint={constraints}", f"{PROJECT}{extras}")
    pip("wheel", f"--wheel-dir={folder}", "--no-deps", "pip")
    constraints.unlink()


def _lay_out(order: Order, wheels: Sequence[Wheel], stick: Path) -> None:
    for name in ("install.sh", "install.py"):
        shutil.copyfile(HERE / name, stick / name)
    shutil.copyfile(PROJECT / "docs" / "airgap.md", stick / "README.md")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (stick / "python-version").write_text(version + "\n", "utf-8")
    about: dict[str, Any] = {
        "version": next(wheel.version for wheel in wheels if wheel.name == NAME),
        "implementation": sys.implementation.name,
        "python": version,
        "system": platform.system(),
        "machine": platform.machine(),
        # Wheels that were built here need a C library that is not older than the one here.
        "libc": list(platform.libc_ver()),
        "processor": order.build.needs,
        "binding": order.build.told(),
        "next": "demo",
        "room": int(_ROOM * sum(wheel.unpacked for wheel in wheels)),
    }
    _write_about(stick, about)


def _seal(order: Order, stick: Path, program: Path, needed: Path) -> str:
    python = str(program.resolve().parent / "python")
    if order.new_key:
        call([str(program), "models", "keygen", "-o", str(order.key.with_suffix(""))])
    # The bundle may name a file of a package, which the export brings along.
    more = {"PYTHONPATH": str(needed / "packages")}
    shown = json.loads(call([str(program), "models", "show", order.bundle, "--json"], **more))
    name = shown["bundle"]["id"]
    (stick / "bundle").mkdir()
    bundle, key = f"bundle/{name}.capt", f"keys/{order.key.stem}.pub"
    call([str(program), "models", "export", order.bundle, "-o", str(stick / bundle),
         "--key", str(order.key)], **more)  # fmt: skip
    (stick / bundle).chmod(0o644)  # whoever installs has to read it
    (stick / "keys").mkdir()
    seal = [python, "-I", "-c", _SEAL]
    call([*seal, "public", str(order.key), str(stick / key)])
    about = json.loads((stick / "wheelhouse.json").read_text("utf-8"))
    going_on = "demo" if name == "demo" else f"chat -m {name}"
    _write_about(stick, {**about, "bundle": bundle, "key": key, "next": going_on})
    job = {
        "root": NAME,
        "wheels": str(stick / "wheels"),
        "models": _models(shown, stick / bundle),
        "build": order.build.told(),
    }
    (needed / "job.json").write_text(json.dumps(job), "utf-8")
    bill = [sys.executable, "-P", "-m", "scripts.wheelhouse.sbom", str(needed / "job.json")]
    text = call(bill, PYTHONPATH=f"{PROJECT}{os.pathsep}{needed}")
    (stick / "sbom.cdx.json").write_text(text, "utf-8")
    write_sums(stick)
    call([*seal, "sign", str(order.key), str(stick / SUMS)])
    return fingerprint(stick / key)


def _models(shown: dict[str, Any], archive: Path) -> list[dict[str, str]]:
    """Each model, and the archive with all that a bundle has besides: adapters, templates."""
    head = shown["bundle"]
    models = [
        {
            "type": "machine-learning-model",
            "name": f"{head['id']}/{model['file']}",
            "version": head["version"],
            **{each: model[each] or "" for each in ("sha256", "licence", "source")},
        }
        for model in {model["file"]: model for model in shown["models"].values()}.values()
    ]
    whole = {"name": archive.name, "sha256": sha256(archive), "source": "models export"}
    about = {"version": head["version"], "licence": head["licence"]}
    return [*models, {"type": "file", **whole, **about}]


def _write_about(stick: Path, about: dict[str, Any]) -> None:
    (stick / "wheelhouse.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def write_sums(stick: Path) -> None:
    """Lines that `sha256sum -c` reads."""
    files = [path for path in sorted(stick.rglob("*")) if path.is_file() and path.name != SUMS]
    lines = [f"{sha256(path)}  ./{path.relative_to(stick).as_posix()}\n" for path in files]
    (stick / SUMS).write_text("".join(lines), "ascii")


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
    needed = [*_needs(project), "cyclonedx-python-lib>=9"]
    pip("install", f"--target={folder}", "--no-compile", *needed, PIP_USER="0")
    if bundle == "demo":
        packages = [f"--target={folder / 'packages'}", "--no-compile", "--no-deps"]
        pip("install", *packages, *_demo_packages(project), PIP_USER="0")
    python, path = (
        [sys.executable, "-P"],
        os.pathsep.join(map(str, (project, folder, folder / "packages"))),
    )
    if key is not None:
        call([*python, "-c", _CHECK_KEY, str(key)], PYTHONPATH=path)
    call([*python, "-m", "capt_local", "models", "verify", bundle], PYTHONPATH=path)


def _demo_packages(project: Path) -> list[str]:
    """The packages whose files the demo bundle names."""
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    return list(found["project"]["optional-dependencies"]["demo"])


def _needs(project: Path) -> list[str]:
    """What the package needs but the binding, which does not read bundles."""
    found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    lines = found["project"]["dependencies"]
    return [line for line in lines if line.partition("==")[0].strip() != BINDING]


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
    backends, processors = list(Backend), list(Processor)
    text = "what computes (cpu); cuda needs its toolkit here and its driver here and there"
    add("--backend", type=Backend, choices=backends, default=Backend.CPU, help=text)
    text = "portable (default): any x86-64 with AVX2, any ARM64; native: those like this one"
    add("--cpu", type=Processor, choices=processors, default=Processor.PORTABLE, help=text)
    add("--wheel", type=Path, metavar="FILE", help="a wheel of the binding built elsewhere")
    text = "an extra of the package, such as eval; may be repeated"
    add("--extra", action="append", default=[], metavar="NAME", help=text)
    found = parser.parse_args(given)
    if found.binding is not None:
        return found
    if found.output is None or not (found.key or found.new_key):
        parser.error("give --output and either --key or --new-key, or --binding alone")
    if (found.key or found.new_key).suffix != ".key":
        parser.error("the name of the key has to end in .key")
    return found


def run(given: argparse.Namespace) -> None:
    """Makes the folder whole, or not at all.

    Raises:
        NotBuilt: something is missing or fails; says what.
    """
    build = Build(given.backend, given.cpu, given.wheel)
    if given.binding is not None:
        given.binding.mkdir(parents=True, exist_ok=True)
        made = shutil.copy(binding_wheel(build, pinned(PROJECT), say), given.binding)
        print(f"{made}\nthere  pip install --find-links {given.binding} .")
        return
    place = Path(os.path.abspath(given.output))
    if os.path.lexists(place):
        raise NotBuilt(f"{place} is there already; nothing was made.")
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
