"""What every test gets: no network, no user's settings, no colour."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from capt_local.config import places

settings.register_profile("default", deadline=None)
settings.load_profile("default")

# Tests of hang-ups start processes that would inherit it, where the tests run under nohup.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


CHILDREN = Path(__file__).resolve().parent / "children"
"""Holds what processes import by themselves that tests start."""
real_site_file = places.site_file


class NetworkForbidden(AssertionError):
    """The program tried to reach the network."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any use of a socket fails the test, names included: nothing here needs the network."""

    def refuse(*_: object, **__: object) -> object:
        raise NetworkForbidden("a socket was used")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield


@pytest.fixture(autouse=True)
def plain_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Settings of this machine and of whoever runs the tests do not reach them.

    The folders for data, settings and state are empty ones; in processes that tests start, too.
    """
    for name in list(os.environ):
        if name.startswith("CAPT_LOCAL_") and name != "CAPT_LOCAL_TEST_CACHE":
            monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    site = folder / "etc" / "config.toml"
    monkeypatch.setattr(places, "site_file", lambda: site)
    monkeypatch.setenv("TESTS_SITE_FILE", str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHILDREN), *_python_path()]))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
