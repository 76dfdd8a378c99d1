"""The pages hold: links lead somewhere, paths and flags exist, and they stay short."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from capt_local.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
COMMAND = re.compile(r"^(?:[ $]*|cat note\.txt \| )capt-local ([a-z]+(?: [a-z]+)?)(.*)$")


def code(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks."""
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            yield line


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), link
        assert not anchor or anchor in anchors(other), link


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    if name == "CHANGELOG.md":  # names what has left, too
        return
    for path in re.findall(r"`((?:tests|scripts|docs|models)/[\w./]+\.\w+)", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ((?:scripts|tests)[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


def test_the_tree_of_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (tree,) = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    folder, folders = Path(), set()
    for line in tree.splitlines():
        first = line.split()[0]
        if not line.startswith(" "):
            folder = Path(first) if first.endswith("/") else Path()
            folders.add(first.rstrip("/"))
        for name in re.findall(r"\b\w+\.py\b", line):
            here = ROOT / "capt_local" / folder / name
            assert here.is_file() or (ROOT / "capt_local" / name).is_file() or "/" in line, line
    package = ROOT / "capt_local"
    have = {path.parent.name for path in package.glob("*/__init__.py")}
    assert have <= folders


@cache
def help_of(verb: str) -> str:
    """What --help prints; empty where there is no such verb."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = app.run([*verb.split(), "--help"])
    return out.getvalue() if code == 0 else ""


@pytest.mark.parametrize("name", NAMES)
def test_flags_of_commands_exist(name: str) -> None:
    for line in code(re.sub(r"\\\n", " ", (ROOT / name).read_text("utf-8"))):
        found = COMMAND.match(line)
        if found is None:
            continue
        words, rest = found[1].split(), found[2].split("#")[0]
        verb = words[0] if words[0] not in ("models", "config") else " ".join(words)
        known = help_of(verb)
        assert known, line
        for flag in re.findall(r"(?<=\s)(--?[a-zA-Z][\w-]*)", rest):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), line


def test_the_pages_stay_short() -> None:
    lines = {page: page.read_text("utf-8").count("\n") for page in PAGES}
    assert lines[ROOT / "README.md"] <= 150
    assert sum(count for page, count in lines.items() if page.parent != ROOT) <= 1800
