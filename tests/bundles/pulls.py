"""A recipe of three small files at a hub on this machine, and a pull of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capt_local.bundles import hub
from capt_local.bundles.install import Imported, Terms, import_from
from capt_local.bundles.manifest import Bundle
from tests.bundles.mirror import Mirror, Repository

SIZES = {"target": 3_000_000, "expert": 40_000, "base": 30_000}
COMMITS = {"target": "a" * 40, "expert": "b" * 40, "base": "c" * 40}


def content(role: str) -> bytes:
    return f"GGUF {role} ".encode().ljust(SIZES[role], role[:1].encode())


def name(role: str) -> str:
    return f"maker/{role}-GGUF"


def repositories() -> dict[str, Repository]:
    return {
        name(role): Repository({f"{role}.Q4_K_M.gguf": content(role)}, COMMITS[role])
        for role in SIZES
    }


def recipe_text(**more: str) -> str:
    """A recipe; `target="..."` adds lines to the table of a role, `head` to the top."""
    tables = [
        f'[models.{role}]\nweights = "{role} of a maker"\nlicence = "apache-2.0"\n'
        f'repository = "{name(role)}"\nfile = "*Q4_K_M.gguf"\n{more.get(role, "")}\n'
        for role in SIZES
    ]
    top = f'schema = 1\nid = "trio"\ntitle = "A trio"\nversion = "1"\n{more.get("head", "")}\n'
    return top + "\n".join(tables)


def write_recipe(file: Path, **more: str) -> Path:
    file.write_text(recipe_text(**more), encoding="utf-8")
    return file


@dataclass
class Puller:
    """Pulls from a mirror."""

    mirror: Mirror
    token: str | None = None

    def plan(self, recipe: Path) -> tuple[Bundle, list[str]]:
        with hub.Hub(self.mirror.url, self.token) as opened:
            return hub.plan(hub.find_recipe(str(recipe)), opened)

    def pull(
        self,
        recipe: Path,
        examine: Callable[[Bundle], None] = lambda _: None,
        report: Callable[[str, float], None] = lambda *_: None,
    ) -> Imported:
        planned, _ = self.plan(recipe)
        with hub.Hub(self.mirror.url, self.token) as opened:
            source = hub.HubSource(opened, planned, report)
            return import_from(source, Terms({}, unsigned=True), examine)
