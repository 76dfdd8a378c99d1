"""uvicorn with bounds on slow clients, without any log, that ends when a signal asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from capt_local.errors import UsageError

Listener = socket.socket
HEADER_SECONDS = 10.0
_MOST_CONNECTIONS = 256
_BACKLOG = 128
_SILENT = {"handlers": ["none"], "level": "CRITICAL", "propagate": False}
# Messages of the libraries may hold what was sent; those of ours go through `report`.
_LOGGING: dict[str, Any] = {
    "version": 1,
    "handlers": {"none": {"class": "logging.NullHandler"}},
    "root": {"handlers": ["none"], "level": "CRITICAL"},
    "loggers": {name: _SILENT for name in ("uvicorn", "asyncio", "starlette")},
}


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone; a name other than localhost may not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listen(host: str, port: int) -> Listener:
    """A socket that listens; port 0 takes a free one. Raises UsageError where it cannot."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen(_BACKLOG)  # who comes before the models are loaded waits
    except OSError as error:
        reason = error.strerror or "it is no address"
        raise UsageError(f"--host {host} --port {port} cannot be used: {reason}.") from None
    return listener


class _Protocol(H11Protocol):
    """Closes a connection whose request does not arrive: it would be held open for nothing."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        theirs, ours = self.conn.their_state, self.conn.our_state
        # Or it goes on arriving when it is answered: refused for want of a key.
        waits = theirs is h11.IDLE or (
            theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE)
        )
        if waits and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, leave: Callable[[], bool], stop: Callable[[], None]):
        super().__init__(config)
        self._leave = leave
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The command line has its own."""
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._leave()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._stop)  # or it would wait for the answers
        await super().shutdown(sockets)


def run(
    app: ASGIApp,
    listener: Listener,
    *,
    leave: Callable[[], bool],
    stop: Callable[[], None],
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serves until `leave`, which is called ten times a second, is true; `stop` ends the answers.

    Raises:
        UsageError: certificate or key of TLS cannot be used.
    """
    config = uvicorn.Config(
        app, http=_Protocol, ws="none", lifespan="off", loop="asyncio", log_config=_LOGGING,
        access_log=False, proxy_headers=False, server_header=False, backlog=_BACKLOG,
        limit_concurrency=_MOST_CONNECTIONS, timeout_graceful_shutdown=3,
        ssl_certfile=certificate, ssl_keyfile=key,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "not a certificate and its key"
        raise UsageError(f"--tls-cert and --tls-key cannot be used: {reason}.") from None
    asyncio.run(_Server(config, leave, stop).serve([listener]))
