"""The folder: put together, tried with its own installer, filled with the bundle, sealed."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.wheelhouse.binding import Build, binding_wheel, check_given, pinned
from scripts.wheelhouse.first import check_content, check_place
from scripts.wheelhouse.install_checks import SUMS, fingerprint
from scripts.wheelhouse.pip import call, pip
from scripts.wheelhouse.sbom import bill
from scripts.wheelhouse.wheels import Wheel, read_wheels, requirements, sha256

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAME = "capt-local"
# What pip compiles and how disks round up, on top of what the wheels hold.
_ROOM = 1.6


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
    return _seal(order, wheels, stick, program)


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
    for name in ("install.sh", "install.py", "install_checks.py"):
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


def _seal(order: Order, wheels: Sequence[Wheel], stick: Path, program: Path) -> str:
    python = str(program.resolve().parent / "python")
    if order.new_key:
        call([str(program), "models", "keygen", "-o", str(order.key.with_suffix(""))])
    shown = json.loads(call([str(program), "models", "show", order.bundle, "--json"]))
    name = shown["bundle"]["id"]
    (stick / "bundle").mkdir()
    bundle, key = f"bundle/{name}.capt", f"keys/{order.key.stem}.pub"
    call([str(program), "models", "export", order.bundle, "-o", str(stick / bundle),
         "--key", str(order.key)])  # fmt: skip
    (stick / bundle).chmod(0o644)  # whoever installs has to read it
    (stick / "keys").mkdir()
    seal = [python, "-I", str(HERE / "seal.py")]
    call([*seal, "public", str(order.key), str(stick / key)])
    about = json.loads((stick / "wheelhouse.json").read_text("utf-8"))
    going_on = "demo" if name == "demo" else f"chat -m {name}"
    _write_about(stick, {**about, "bundle": bundle, "key": key, "next": going_on})
    text = bill(NAME, wheels, _models(shown, stick / bundle), order.build.told())
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
