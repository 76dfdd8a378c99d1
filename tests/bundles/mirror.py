"""A hub on this machine: it speaks as much of the API as a pull asks for, and fails on order."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Action = Callable[["Handler"], None]


@dataclass
class Repository:
    """What the mirror has under one name."""

    files: dict[str, bytes]
    commit: str = "1" * 40
    licence: str | None = "apache-2.0"
    gated: object = False
    about: dict[str, Any] = field(default_factory=dict)

    def described(self, name: str) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": "0" * 40,
                "lfs": {"size": len(data), "sha256": sha256(data), "pointerSize": 134},
            }
            for path, data in self.files.items()
        ]
        card = {"cardData": {"license": self.licence}} if self.licence else {}
        found = {"id": name, "sha": self.commit, "gated": self.gated, "siblings": siblings}
        return {**found, **card, **self.about}


@dataclass(frozen=True)
class Seen:
    """A request."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Mirror:
    """A running mirror.

    Attributes:
        url: where it is.
        repositories: what it has, by name.
        seen: the requests of GET, in their order.
        heads: the paths of HEAD.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[Seen] = []
        self.heads: list[str] = []
        self._orders: list[tuple[str, list[Action]]] = []
        bound = type("Bound", (Handler,), {"mirror": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def order(self, part: str, *actions: Action) -> None:
        """The next requests with this in their path are answered so; those after as usual."""
        self._orders.append((part, list(actions)))

    def forget_orders(self) -> None:
        """From now on all is answered as usual."""
        self._orders.clear()

    def ordered(self, path: str) -> Action:
        for part, actions in self._orders:
            if part in path and actions:
                return actions.pop(0)
        return Handler.usual

    def fetches(self) -> list[Seen]:
        return [each for each in self.seen if "/resolve/" in each.path]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    mirror: Mirror
    protocol_version = "HTTP/1.1"
    body = True

    def do_HEAD(self) -> None:
        """As GET, without the bytes; orders are for GET alone."""
        self.mirror.heads.append(self.path)
        self.body = False
        self.usual()

    def do_GET(self) -> None:
        self.body = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.mirror.seen.append(Seen(self.path, headers))
        try:
            self.mirror.ordered(self.path)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def usual(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name, _, rest = path.removeprefix("/api/models/").removeprefix("/").partition("/resolve/")
        if path.startswith("/api/models/"):
            name, _, rest = name.partition("/revision/")
        revision, _, file = rest.partition("/")
        found = self.mirror.repositories.get(name)
        if found is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", found.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/"):
            self.answer(200, {}, json.dumps(found.described(name)).encode())
        elif file in found.files:
            self.send(found.files[file], found.commit)
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def send(self, data: bytes, commit: str, *, stop: int | None = None) -> None:
        """A file from where it is asked for; the connection is cut at `stop`."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": f'"{sha256(data)}"', "Content-Length": str(len(data) - start)}
        headers["X-Repo-Commit"] = commit
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206 if start else 200, headers)
        if self.body:
            self.wfile.write(data[start:stop])
            if stop is not None:
                self.cut()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.body:
            self.wfile.write(body)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Mirror]:
    mirror = Mirror(tls)
    try:
        yield mirror
    finally:
        mirror.stop()


def status(code: int, **headers: str) -> Action:
    """An answer with a status and a body that nobody is to repeat."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    secret = {"X-Error-Message": "SECRET of the hub", "X-HF-Warning": "x; SECRET", **named}
    return sends(b'{"error": "SECRET of the hub"}', secret, code)


def cut_at(count: int) -> Action:
    """Sends the file as asked for, but only up to a byte."""

    def act(handler: Handler) -> None:
        path = unquote(urlsplit(handler.path).path)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        found = handler.mirror.repositories[name]
        handler.send(found.files[rest.partition("/")[2]], found.commit, stop=count)

    return act


def sends(body: bytes, headers: dict[str, str] | None = None, code: int = 200) -> Action:
    return lambda handler: handler.answer(code, headers, body)


def redirect(url: str) -> Action:
    return lambda handler: handler.answer(302, {"Location": url})
