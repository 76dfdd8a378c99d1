"""uvicorn without any log and with limits for slow clients; and the guard before every request.

The guard checks Host, Origin, key, sizes and times, and adds security headers. A page of another
site cannot use this server: its Origin is refused, and a domain that it has pointed at this machine
(DNS rebinding) is not an allowed Host. Other accounts of the machine have no key. No error repeats
what was sent, and nothing is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from capt_local.errors import CaptError, UsageError, error_location
from capt_local.serve.protocol import ApiError, api_error, json_response

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

PROOF = "/proof"
LARGEST_BODY = 8 << 20
LARGEST_DOCUMENT = 64 << 20
BODY_SECONDS = 60.0
SEND_SECONDS = 60.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
_ALLOWED = b"authorization, content-type"
_MORE = {
    401: {"www-authenticate": "Bearer"},
    408: {"connection": "close"},
    413: {"connection": "close"},
    503: {"retry-after": "5"},
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
        listener.listen(_BACKLOG)  # clients wait here until the models are loaded
    except OSError as error:
        reason = error.strerror or "it is no address"
        raise UsageError(f"--host {host} --port {port} cannot be used: {reason}.") from None
    return listener


class _Protocol(H11Protocol):
    """Closes a connection whose request does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        theirs, ours = self.conn.their_state, self.conn.our_state
        # Or a body that is still arriving after its response, such as a refusal without a key.
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
        """Installs no handlers: the command line has its own."""
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


class Guard:
    """ASGI middleware around the whole application; see the module.

    Args:
        app: behind it.
        hosts: names and addresses that the server answers to, in lower case, without port.
        keys: the accepted API keys.
        origins: of pages of other sites that may use it, such as https://ehr.example.
        public_paths: that need no key, since they hold no data.
        report: called with a line about an error of the program itself.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], keys: Sequence[str], origins: Iterable[str],
        public_paths: Iterable[str], report: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._app = app
        self._hosts, self._origins = frozenset(hosts), frozenset(origins)
        self._keys, self._open_paths = tuple(keys), frozenset(public_paths)
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin", "")
        answered = False

        async def guarded(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message["headers"] = [*message.get("headers", ()), *self._headers(origin)]
            async with asyncio.timeout(SEND_SECONDS):  # a client that does not read
                await send(message)

        scope["app"] = self  # so that routes raise what they would answer in a way of their own
        try:
            if self._preflight(scope, headers, origin):
                await Response(status_code=204)(scope, receive, guarded)
                return
            if scope["path"] == PROOF:
                # Shows that this server knows the keys, to a page that has one of them.
                nonce = b"proof " + scope["query_string"][:100]
                keys = (key.encode() for key in self._keys)
                proofs = [hmac.digest(key, nonce, "sha256").hex() for key in keys]
                await json_response({"proofs": proofs})(scope, receive, guarded)
                return
            most = LARGEST_DOCUMENT if scope["path"] == "/documents" else LARGEST_BODY
            await self._app(scope, _bounded(receive, headers, most), guarded)
        except ClientDisconnect:
            pass  # in the middle of its request
        except TimeoutError:
            raise _DropConnection from None  # the connection is closed, without a word in any log
        except Exception as error:
            problem = self._problem(error)
            if answered:
                raise _DropConnection from None
            more = _MORE.get(problem.status, {})
            await json_response(problem.body(), problem.status, more)(scope, receive, guarded)

    def _problem(self, error: Exception) -> ApiError:
        match error:
            case ApiError():
                return error
            case CaptError():
                return api_error(error)
            case HTTPException():
                return ApiError(error.status_code, f"{error.detail}: there is no such thing here.")
        self._report(f"an unexpected error at {error_location(error)}")
        return ApiError(500, "The server met an unexpected error; nothing more is known.")

    def _preflight(self, scope: Scope, headers: dict[bytes, str], origin: str) -> bool:
        """Checks host, origin and key; returns whether the request is a CORS preflight."""
        host = headers.get(b"host", "")
        name = host.partition("]")[0] + "]" if host[:1] == "[" else host.partition(":")[0].lower()
        if name not in self._hosts:
            raise ApiError(403, "The server does not answer to this Host.", "host_not_allowed")
        allowed = origin.lower() in self._origins
        if origin and not allowed and origin.lower() != f"{scope['scheme']}://{host.lower()}":
            raise ApiError(403, "Pages of this origin may not use it.", "origin_not_allowed")
        if allowed and scope["method"] == "OPTIONS":
            return True
        if scope["path"] in (*self._open_paths, PROOF) and scope["method"] in ("GET", "HEAD"):
            return False
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        # All keys are compared, so that the time reveals nothing about them.
        if not sum(hmac.compare_digest(given, each.encode()) for each in self._keys):
            raise ApiError(401, "A key is needed: Authorization: Bearer KEY.", "invalid_api_key")
        return False

    def _headers(self, origin: str) -> Sequence[tuple[bytes, bytes]]:
        if origin.lower() not in self._origins:
            return _HEADERS
        return (
            *(pair for pair in _HEADERS if pair[0] != b"cross-origin-resource-policy"),
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"vary", b"origin"),
        )


class _DropConnection(Exception):
    """Makes uvicorn close the connection in the middle of a response."""


def _bounded(receive: Receive, headers: dict[bytes, str], most: int) -> Receive:
    """Limits the size of a request body and the time that it may take to arrive."""
    length = headers.get(b"content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise _too_large(most)
    size, deadline, more = 0, asyncio.get_running_loop().time() + BODY_SECONDS, True

    async def bounded() -> Message:
        nonlocal size, more
        if not more:
            return await receive()  # waits for the client to leave
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "The request took too long to arrive.", "timeout") from None
        if message["type"] == "http.request":
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > most:
                raise _too_large(most)
        return message

    return bounded


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The request is larger than {most >> 20} MiB.", "request_too_large")
