"""What every test gets: no network, no user's settings, no colour.

Two guards stand before the network. One is in the interpreter, of the tests and of what they start
(`tests/children/socket_guard.py`): it lets nothing pass but loopback and sockets of this machine.
The other takes all sockets from a test, unless its folder has a fixture of its own in that place.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from capt_local import config as site_config
from tests.children import socket_guard
from tests.children.socket_guard import NetworkForbidden

settings.register_profile("default", deadline=None)
settings.load_profile("default")

# Tests of hang-ups and of Ctrl-C start processes that would inherit it, where the tests themselves
# run under nohup or in the background of a script.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


ROOT = Path(__file__).resolve().parents[1]
CHILDREN = ROOT / "tests" / "children"
"""Holds what processes import by themselves that tests start."""
real_site_file = site_config.site_file


socket_guard.install()


def pytest_collection_finish() -> None:
    """Eight thousand collected tests stay to the end: the garbage collector need not visit them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def forbidden_sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the guards of processes write what they refused."""
    log = tmp_path_factory.mktemp("sockets") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(socket_guard.LOG, str(log))
        yield log


@pytest.fixture(autouse=True)
def nothing_was_refused(forbidden_sockets: Path) -> Iterator[None]:
    """A socket that was refused fails the test, also where the program went on."""
    yield
    if forbidden_sockets.exists():
        said = forbidden_sockets.read_text()
        forbidden_sockets.unlink()
        pytest.fail(f"the network was reached for: {said}")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any use of a socket fails the test, names included: nothing here needs the network."""

    def refuse(*_: object, **__: object) -> object:
        raise NetworkForbidden("a socket was used")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What starts processes before a test begins, as fixtures of a module do, has none either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(CHILDREN), str(ROOT), *_python_path()]))
        _empty_folders(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def plain_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Settings of this machine and of whoever runs the tests do not reach them.

    The folders for data, settings and state are empty ones; in processes that tests start, too.
    """
    _empty_folders(monkeypatch, tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def _empty_folders(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in list(os.environ):
        if name.startswith("CAPT_LOCAL_") and not name.startswith("CAPT_LOCAL_TEST_"):
            patch.delenv(name)
    for kind in ("data", "config", "state"):
        patch.setenv(f"XDG_{kind.upper()}_HOME", str(folder / kind))
    site = folder / "etc" / "config.toml"
    patch.setattr(site_config, "site_file", lambda: site)
    patch.setenv("TESTS_SITE_FILE", str(site))


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
