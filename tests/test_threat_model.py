"""The tests that docs/threat-model.md names exist, and what it says of the whole house holds."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest

from tests.conftest import NetworkForbidden
from tests.test_layers import FILES, imports

ROOT = Path(__file__).resolve().parent.parent
MODEL = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in MODEL.splitlines()
    if line.startswith("| ")
][1:]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", MODEL)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), file
    assert name.startswith("test_") and name in functions(ROOT / file), name


def test_every_row_has_a_test_or_says_that_it_has_none() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        assert len(row) == 4, row
        assert "::" in row[3] or "**not yet**" in row[3] or row[3] == "no such output", row


def test_names_of_tests_are_written_in_one_form() -> None:
    """A name in another form would not be looked at above."""
    assert len(NAMED) == MODEL.count("::") > 40


def test_the_pages_name_each_other() -> None:
    security = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "docs/threat-model.md" in security and "../SECURITY.md" in MODEL
    for part in ("164.312", "diskcache", "Reporting"):
        assert part in security


def test_the_guard_forbids_sockets() -> None:
    for use in (
        lambda: socket.socket(),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 9),
    ):
        with pytest.raises(NetworkForbidden):
            use()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_unpacks_with_the_standard_library(path: Path) -> None:
    unpacking = {"tarfile", "zipfile", "shutil.unpack_archive", "pickle", "shelve", "marshal"}
    names = set(imports(path))
    assert not {name for name in names if name in unpacking or name.split(".")[0] in unpacking}
