"""The rules of the house, read off the syntax trees: who imports whom, who prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "capt_local"
FILES = sorted(PACKAGE.rglob("*.py"))
SCREEN = PACKAGE / "report" / "terminal.py"
DRAWING = PACKAGE / "report" / "drawing.py"
HUB = PACKAGE / "bundles" / "hub.py"
SERVER = PACKAGE / "serve" / "server.py"
INPUT_LINE = PACKAGE / "report" / "input_line.py"

# A room uses rooms of lower floors alone. The package's public face is above all rooms that it
# imports only when it is used; lm_eval is another command line, above our own.
FLOORS = (
    {"__init__", "__main__", "lm_eval"},
    {"cli"},
    {"batch", "chat", "evaluate", "serve"},
    {"provenance", "report", "rerank"},
    {"runtime"},
    {"model_checks", "policy"},
    {"decoding", "llama"},
    {"alignment", "prompting"},
    {"bundles", "grounding"},
    {"config", "documents", "line_file", "tokenization"},
    {"strict_json"},
    {"errors", "hardening", "version"},
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Full names of what a file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def rooms_used(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports(path)]
    names = {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "capt_local"}
    # `from capt_local import __version__` is the package itself.
    known = {room(file) for file in FILES}
    return {name if name in known else "__init__" for name in names}


def test_a_room_uses_only_rooms_of_lower_floors() -> None:
    for path in FILES:
        own = room(path)
        assert own in FLOOR_OF, f"the room {own} has no floor here"
        used = rooms_used(path) - {own}
        assert not {name for name in used if FLOOR_OF[name] <= FLOOR_OF[own]}, path


def top(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_some_libraries_have_one_room_or_file() -> None:
    for path in FILES:
        assert room(path) in ("llama", "hardening") or not top(path) & {"llama_cpp", "ctypes"}, path
        assert room(path) == "cli" or "typer" not in top(path), path
        assert path == DRAWING or "rich" not in top(path), path
        # What turns strings into styles, or writes by itself, is not even there.
        assert not set(imports(path)) & {"rich.print", "rich.markup", "rich.live", "rich.markdown"}
        # It draws what is typed by itself, so it is the other place where text meets a terminal.
        assert path == INPUT_LINE or "prompt_toolkit" not in top(path), path
        if room(path) == "chat":  # a conversation shows nothing
            used = {name for name in imports(path) if name.startswith("capt_local.report.")}
            assert {name.split(".")[2] for name in used} <= {"json"}


NETWORK = {
    "socket", "http", "urllib", "requests", "httpx", "ftplib", "smtplib", "diskcache", "httpx2",
    "httpcore", "httpcore2", "huggingface_hub", "hf_xet", "aiohttp", "urllib3", "ssl", "asyncore",
    "socketserver", "xmlrpc", "telnetlib", "poplib", "imaplib",
}  # fmt: skip


def test_only_the_hub_reaches_for_the_network() -> None:
    for path in FILES:
        allowed = {HUB: {"httpx2", "huggingface_hub", "ssl", "urllib"}, SERVER: {"socket", "ssl"}}
        assert not top(path) & NETWORK - allowed.get(path, set()), path
        assert "urllib.request" not in {name.rpartition(".")[0] for name in imports(path)}, path


def test_only_one_verb_uses_the_hub() -> None:
    front = "capt_local.bundles.hub."
    users = [path for path in FILES if any(name.startswith(front) for name in imports(path))]
    assert [path.name for path in users] == ["models_create.py"]
    for node in ast.parse(users[0].read_text("utf-8")).body:
        assert not isinstance(node, ast.ImportFrom) or not (node.module or "").endswith(".hub")


def printing(tree: ast.AST) -> Iterator[str]:
    """Every way of printing that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"print", "pprint", "breakpoint", "input"} or name.startswith(
                ("typer.echo", "typer.secho", "rich.print", "logging.", "warnings.", "os.write")
            ):
                yield name
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}:
                yield name


def test_only_the_screen_prints() -> None:
    for path in FILES:
        if path != SCREEN:
            assert not list(printing(ast.parse(path.read_text("utf-8")))), path
            assert "logging" not in top(path)


def test_the_rule_about_printing_sees_what_it_should() -> None:
    source = "import sys\nprint(1)\nsys.stderr.write('x')\ntyper.echo('x')"
    assert len(list(printing(ast.parse(source)))) == 3
    assert list(printing(ast.parse(SCREEN.read_text("utf-8"))))
