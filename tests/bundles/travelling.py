"""A small signed bundle that lies in a folder, and a store to take it into. No model is real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capt_local.bundles import archive, store
from capt_local.bundles.install import import_bundle
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.sign import TrustedKey, new_key, read_private, read_public
from tests.bundle_files import make_bundle

SIZES = {"target": 70_000, "expert": 1_500, "base": 1_024}
TEMPLATE = "{{ messages }}"
FILES = ["base.gguf", "bundle.sig", "bundle.signer", "bundle.toml", "chat.jinja"]
FILES += ["expert.gguf", "target.gguf"]


def content(role: str, version: str) -> bytes:
    return f"GGUF {role} {version} ".encode().ljust(SIZES[role], role[:1].encode())


def make_trio(folder: Path, version: str = "2") -> Bundle:
    contents = {role: content(role, version) for role in SIZES}
    return make_bundle(folder, contents, TEMPLATE, id="trio", version=version)


@dataclass(frozen=True)
class Hands:
    """Whoever makes bundles, with a key."""

    folder: Path
    key: Path
    trusted: TrustedKey

    @classmethod
    def at(cls, folder: Path) -> Hands:
        folder.mkdir(parents=True, exist_ok=True)
        private, public, _ = new_key(folder / "hands")
        return cls(folder, private, read_public(public))

    def export(self, name: str, version: str = "2", *, signed: bool = True) -> Path:
        bundle = make_trio(self.folder / f"{name}-from", version)
        return archive.export(
            bundle, self.folder / name, read_private(self.key) if signed else None
        )

    def take(
        self,
        path: Path,
        *,
        unsigned: bool = False,
        older: bool = False,
        examine: Callable[[Bundle], None] = lambda _: None,
        report: Callable[[str, float], None] | None = None,
    ) -> tuple[Bundle, bool]:
        keys = {self.trusted.fingerprint: self.trusted}
        return import_bundle(path, keys, examine, report, unsigned=unsigned, older=older)


def everything(folder: Path) -> dict[str, bytes | None]:
    """What lies below a folder, by path; None for what is no file."""
    return {
        str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None
        for each in sorted(folder.rglob("*"))
    }


def installed() -> dict[str, bytes | None]:
    return everything(store.user_folder()) if store.user_folder().is_dir() else {}
