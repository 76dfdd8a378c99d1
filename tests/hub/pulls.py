"""A recipe of three small files, and a pull of them; no file is a real model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capt_local.bundle.manifest import Bundle
from capt_local.bundle.transfer import Imported
from capt_local.hub import plan as hub
from capt_local.hub.address import Hub
from capt_local.hub.passing import Patience
from capt_local.hub.recipe import Recipe, find_recipe
from capt_local.hub.web import Web
from tests.hub.mirror import Mirror, Repository

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
    """Pulls from a mirror, with a clock that only a test moves.

    Attributes:
        waits: seconds that were waited.
        said: what was told on the way.
    """

    mirror: Mirror
    tries: int = 3
    token: str | None = None
    waits: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    answer: float = 5.0

    def web(self) -> Web:
        patience = Patience(
            tries=self.tries, sleep=self.waits.append, clock=self._now, answer=self.answer
        )
        return Web(Hub.at(self.mirror.url), self.token, self.said.append, patience)

    def plan(self, recipe: Recipe | Path) -> hub.Plan:
        found = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))
        with self.web() as web:
            return hub.plan(found, web)

    def pull(
        self,
        recipe: Recipe | Path,
        examine: Callable[[Bundle], None] = lambda _: None,
        **more: Any,
    ) -> Imported:
        planned = self.plan(recipe)
        with self.web() as web:
            return hub.pull(planned, web, examine, **more)

    def _now(self) -> float:
        return self.times.pop(0) if self.times else 0.0
