"""Wheels made of a few lines or of what is installed here, and sticks made of them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from capt_local.bundles.sign import new_key
from scripts.wheelhouse.__main__ import HERE, write_sums
from scripts.wheelhouse.wheels import read_wheels, requirements

# What stands for the program: it notes how it was called.
_PROGRAM = """\
import os, signal, sys
def main():
    with open(os.environ["STUB_LOG"], "a") as log:
        print(*sys.argv[1:], sep="|", file=log)
    if sys.argv[1] == "--version":
        print("{version}")
    if sys.argv[1:3] == ["models", "import"]:
        {importing}
        print("tiny 1 is installed: signed by somebody.")
"""


# What stands for the binding.
_BINDING = """\
import os, signal, sys
def llama_backend_init():
    {doctor}
def llama_print_system_info():
    pass
"""

# The part of it that the installer asks.
_PLACES = """\
from pathlib import Path
def key_folders():
    return Path.home() / "site" / "keys", Path.home() / "user" / "keys"
"""


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """A wheel of text files; `name` may be written in any way."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    whole = {f"{stem}.dist-info/{key}": text for key, text in about.items()} | dict(files)
    return _zip(folder / f"{stem}-py3-none-any.whl", stem, {
        key: text.encode() for key, text in whole.items()
    })  # fmt: skip


def _zip(path: Path, stem: str, files: Mapping[str, bytes]) -> Path:
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in sorted(files.items()):
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            lines.append(f"{name},sha256={digest},{len(data)}\n")
        record = f"{stem}.dist-info/RECORD"
        archive.writestr(record, "".join([*lines, f"{record},,\n"]))
    return path


def repack(name: str, folder: Path, *, compiled: bool = False) -> Path:
    """The wheel of an installed package, put together again: no network and no compiler.

    Scripts and headers, which lie outside the packages, are left out; pip makes scripts anew.
    Compiled as well, what runs from its wheel runs four times as fast.
    """
    found = metadata.distribution(name)
    own = f"{found.metadata['Name'].replace('-', '_').replace('.', '_')}-{found.version}"
    files: dict[str, bytes] = {}
    for each in found.files or ():
        place = Path(str(found.locate_file(each)))
        inner = each.as_posix()
        if inner.startswith("..") or inner.endswith(".pyc") or not place.is_file():
            continue
        head, slash, tail = inner.partition("/")
        if head.endswith(".dist-info"):
            if tail in {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}:
                continue
            inner = f"{own}.dist-info{slash}{tail}"
        files[inner] = place.read_bytes()
        if compiled and inner.endswith(".py"):
            files[inner + "c"] = _compiled(place)
    lines = (found.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(":")[2].strip() for line in lines if line.startswith("Tag:")]
    parts = (sorted(set(part)) for part in zip(*(tag.split("-") for tag in tags), strict=True))
    return _zip(folder / f"{own}-{'-'.join('.'.join(part) for part in parts)}.whl", own, files)


def _compiled(place: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        made = py_compile.compile(str(place), str(Path(folder, "x")), invalidation_mode=mode)
        return Path(str(made)).read_bytes()


def needed(requirements: Iterable[str]) -> set[str]:
    """Normalized names of all installed packages that these need here, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += map(Requirement, metadata.requires(name) or ())
    return found


def write_program(
    folder: Path,
    version: str = "1.0",
    doctor: str = "pass",
    importing: str = "pass",
) -> None:
    """The wheel of a program of that name, in the place of an earlier one."""
    for old in folder.glob("capt_local-*.whl"):
        old.unlink()
    text = _PROGRAM.format(version=version, importing=importing)
    entry = "[console_scripts]\ncapt-local = capt_local_stub:main\n"
    files = {
        "capt_local_stub.py": text,
        "llama_cpp.py": _BINDING.format(doctor=doctor),
        "capt_local/config.py": _PLACES,
        f"capt_local-{version}.dist-info/entry_points.txt": entry,
    }
    write_wheel(folder, "capt-local", version, files)


def make_stick(stick: Path) -> None:
    """A whole stick, with a stub for the program and a bundle that nobody looks into."""
    (stick / "wheels").mkdir(parents=True)
    repack("pip", stick / "wheels", compiled=True)
    write_program(stick / "wheels")
    (stick / "keys").mkdir()
    new_key(stick / "keys" / "maker")
    (stick / "keys" / "maker.key").unlink()
    (stick / "bundle").mkdir()
    (stick / "bundle" / "tiny.capt").write_bytes(b"a bundle")
    for name in ("install.sh", "install.py"):
        shutil.copyfile(HERE / name, stick / name)
    (stick / "python-version").write_text(f"3.{sys.version_info[1]}\n")
    tell(
        stick, version="1.0", implementation="cpython", python=f"3.{sys.version_info[1]}",
        system=platform.system(), machine=platform.machine(), libc=list(platform.libc_ver()),
        processor=[], space=1 << 20, bundle="bundle/tiny.capt", key="keys/maker.pub",
        next="chat -m tiny",
    )  # fmt: skip


def tell(stick: Path, **changes: Any) -> None:
    """Changes what the stick says of itself, and makes requirements and sums fit again."""
    place = stick / "wheelhouse.json"
    about = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps({**about, **changes}))
    (stick / "requirements.txt").write_text(requirements(read_wheels(stick / "wheels")))
    (stick / "SHA256SUMS").unlink(missing_ok=True)
    write_sums(stick)


def run(stick: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`sh install.sh`, with the Python of the tests and a home beside the stick."""
    home = stick.parent / "home"
    home.mkdir(exist_ok=True)
    more = {"HOME": str(home), "STUB_LOG": str(stick.parent / "log"), "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", str(stick / "install.sh"), *arguments],
        env={**os.environ, **more, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(stick: Path, *arguments: str, code: int = 1, **environment: str) -> str:
    """The one line of an installer that refuses."""
    result = run(stick, *arguments, **environment)
    assert result.returncode == code, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def program(stick: Path) -> Path:
    """Where the installer leads to."""
    return stick.parent / "home" / "capt-local" / "bin" / "capt-local"


def version(stick: Path) -> str:
    """Of the program that is led to, as it says itself."""
    environment = {**os.environ, "STUB_LOG": os.devnull}
    command = [str(program(stick)), "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions(stick: Path) -> set[str]:
    """What is installed beside each other."""
    folder = stick.parent / "home" / "capt-local" / "versions"
    return {each.name.partition("-")[0] for each in folder.iterdir()}


def newer(stick: Path, number: str, **behaviour: str) -> None:
    """Puts another version of the program on the stick."""
    write_program(stick / "wheels", number, **behaviour)
    tell(stick, version=number)
