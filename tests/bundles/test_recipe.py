"""Recipes: those of the package, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from capt_local.bundles.recipe import read_recipe, recipes
from capt_local.errors import ModelError
from tests.bundles.pulls import recipe_text

ROWS = {"paper", "llama3-med", "med42", "permissive", "meditron", "medgemma", "asclepius"}


def test_the_recipes_of_the_package() -> None:
    found = {each.id: each for each in recipes()}
    assert set(found) == ROWS
    assert {name for name, each in found.items() if each.by_hand} == {
        "paper",
        "medgemma",
        "asclepius",
    }
    for each in found.values():
        assert list(each.parts) == ["target", "expert", "base"]
        assert each.parts["expert"].style is each.parts["base"].style
        for part in each.parts.values():
            assert bool(part.repository) is not bool(each.by_hand)


def test_no_recipe_names_a_host() -> None:
    folder = Path(__file__).resolve().parents[2] / "capt_local" / "bundles"
    assert list(folder.rglob("*.toml"))
    for file in [*folder.rglob("*.toml"), *folder.rglob("*.py")]:
        text = file.read_text("utf-8")
        assert not re.search(r"https?://(?!\W|127\.)", text), file.name
        assert not re.search(r"\b[a-z-]+\.(?:co|com|io|net|ai)\b", text), file.name


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("schema = 1", "schema = 2", "schema is none"),
        ('id = "trio"', 'id = "../trio"', "id must be"),
        ('title = "A trio"', "", "title is missing"),
        ('title = "A trio"', 'title = "A trio"\nurl = "x"', "url is not known"),
        ('licence = "apache-2.0"', 'licence = ""', "licence must be one word"),
        ("maker/target-GGUF", "target-GGUF", "repository must be OWNER/NAME"),
        ("maker/target-GGUF", "maker/../target", "repository must be OWNER/NAME"),
        ('file = "*Q4_K_M.gguf"', 'file = "../x.gguf"', "the path of a .gguf file"),
        ('file = "*Q4_K_M.gguf"', 'file = "**.gguf"', "the path of a .gguf file"),
        ('file = "*Q4_K_M.gguf"', 'revision = "main"\nfile = "x.gguf"', "names of branches move"),
        ('file = "*Q4_K_M.gguf"', 'sha256 = "abc"\nfile = "x.gguf"', "sha256 must be a SHA-256"),
        ("[models.base]", "[models.other]", "there is another one"),
        ("[models.target]", "[models.expert-2]", "target is missing"),
        ("schema = 1", f"schema = {'1' * 5000}", "not TOML"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = recipe_text()
    assert old in text
    file = tmp_path / "r.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ModelError, match=re.escape(told)):
        read_recipe(file)
