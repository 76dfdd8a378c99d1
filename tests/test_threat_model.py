"""The tests that docs/threat-model.md names exist, and what it says of the whole house holds."""

from __future__ import annotations

import ast
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children.socket_guard import LOG, NetworkForbidden
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


def test_a_test_that_is_named_exists() -> None:
    for file, name in NAMED:
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


def test_every_technical_safeguard_is_told() -> None:
    """All standards and specifications of 45 CFR 164.312, what is given and what is not."""
    security = (ROOT / "SECURITY.md").read_text("utf-8")
    safeguards = [
        "(a)(1)", "(a)(2)(i)", "(a)(2)(ii)", "(a)(2)(iii)", "(a)(2)(iv)", "(b)", "(c)(1)",
        "(c)(2)", "(d)", "(e)(1)", "(e)(2)(i)", "(e)(2)(ii)",
    ]  # fmt: skip
    rows = [line.split("|")[1:-1] for line in security.splitlines() if line.startswith("| (")]
    assert [row[0].split()[0] for row in rows] == safeguards
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)


def test_the_guard_forbids_sockets() -> None:
    for use in (
        lambda: socket.socket(),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 9),
    ):
        with pytest.raises(NetworkForbidden):
            use()


def python(code: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A process of the kind that tests start."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "use",
    [
        "s.connect(('192.0.2.1', 9))",
        "s.connect_ex(('192.0.2.1', 9))",
        "s.bind(('0.0.0.0', 0))",
        "s.bind(('', 0))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "socket.getaddrinfo('example.invalid', 80)",
        "socket.gethostbyname('example.invalid')",
        "socket.create_connection(('2001:db8::1', 9))",
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
    ],
)
def test_no_process_of_a_test_reaches_another_machine(
    use: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    done = python(f"import socket\ns = socket.socket()\ntry:\n    {use}\nexcept OSError:\n    pass")
    assert done.returncode and "NetworkForbidden" in done.stderr
    assert (tmp_path / "log").read_text().startswith("socket.")


def test_this_machine_may_be_asked() -> None:
    code = (
        "import socket\n"
        "one = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(('localhost', one.getsockname()[1])).close()\n"
        "socket.socketpair()\n"
    )
    assert python(code).returncode == 0


def test_the_program_is_never_started_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "capt_local", "--version"]
    for more in ({"env": {}}, {"env": {"PYTHONPATH": "/elsewhere"}}):
        with pytest.raises(AssertionError, match="without the guard"):
            subprocess.run(command, **more)  # type: ignore[call-overload]
    with pytest.raises(AssertionError, match="without the guard"):
        subprocess.run([command[0], "-I", *command[1:]])
    assert subprocess.run(command, capture_output=True).returncode == 0


# The kernel ends the process at the first call that has to do with sockets, whoever makes it.
WATCHED = """
import platform, sys
from capt_local import hardening as h
machine = h._MACHINES[platform.machine()]
# socket, connect, sendto, sendmsg, bind, listen
calls = [(41, 42, 44, 46, 49, 50), (198, 203, 206, 211, 200, 201)][machine.column]
code = [h._one(h._LOAD, h._NUMBER)]
code += [part for call in calls for part in h._for_call(call, [h._one(h._RETURN, h._KILL)])]
assert h._install(machine, b"".join([*code, h._one(h._RETURN, h._ALLOW)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux watches")
def test_an_answer_makes_no_call_for_a_socket() -> None:
    ask = "from capt_local.cli import app; sys.exit(app.run(['generate', '-t', '1', '-n', '4']))"
    done = python(WATCHED + ask, "What is a fever?\n")
    assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
    control = python(WATCHED + "import socket; socket.socket(socket.AF_UNIX)")
    assert control.returncode == -signal.SIGSYS


def test_nothing_unpacks_with_the_standard_library() -> None:
    for path in FILES:
        if path.name == "formats.py":  # in the confined process of `documents`
            continue
        unpacking = {"tarfile", "zipfile", "shutil.unpack_archive", "pickle", "shelve", "marshal"}
        names = set(imports(path))
        assert not {name for name in names if name in unpacking or name.split(".")[0] in unpacking}
