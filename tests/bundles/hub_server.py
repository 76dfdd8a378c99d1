"""A Hugging Face hub on this machine with three files, a recipe of them, and failures on order."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

ROLES = ("target", "expert", "base")
COMMITS = {role: letter * 40 for role, letter in zip(ROLES, "abc", strict=True)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def repository(role: str) -> str:
    return f"maker/{role}-GGUF"


def write_recipe(file: Path, **more: str) -> str:
    """A recipe; `target="..."` adds lines to the table of a role, `head` to the top."""
    text = f'id = "trio"\ntitle = "A trio"\nversion = "1"\n{more.get("head", "")}\n'
    for role in ROLES:
        text += (
            f'[models.{role}]\nweights = "{role} of a maker"\nlicence = "apache-2.0"\n'
            f'repository = "{repository(role)}"\nfile = "*Q4_K_M.gguf"\n{more.get(role, "")}\n'
        )
    file.write_text(text, encoding="utf-8")
    return str(file)


class HubServer:
    """A running hub.

    Attributes:
        files: content by role.
        sent: what is sent instead of it, by role.
        about: changes to what is said of a repository, by role.
        status: of the answers to requests with this in their path.
        cut: bytes after which the connection is cut, by role.
        pause: bytes after which nothing comes for a while, by role.
        seen: path and headers of each request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.names = {role: f"{role}.Q4_K_M.gguf" for role in files}
        self.sent: dict[str, bytes] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.status: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.pause: dict[str, int] = {}
        self.encoding: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        bound = type("Bound", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def fetches(self, role: str = "") -> list[dict[str, str]]:
        """Headers of the requests for files."""
        return [headers for path, headers in self.seen if "/resolve/" in path and role in path]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.seen.append((path, {key.lower(): each for key, each in self.headers.items()}))
        try:
            self.answer(body=True)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        role = next(role for role in ROLES if repository(role) in path)
        status = next((code for part, code in self.hub.status.items() if part in path), 200)
        if status == 200 and "/resolve/" in path:
            self.send_file(role, body=body)
            return
        if status == 200 and "/revision/" in path and COMMITS[role] not in path:
            status = 404
        data = json.dumps(self.described(role)) if status == 200 else '{"error": "SECRET of it"}'
        self.head(status, {"Content-Length": str(len(data)), "X-Error-Message": "SECRET of it"})
        if body:
            self.wfile.write(data.encode())

    def described(self, role: str) -> dict[str, Any]:
        data, name = self.hub.files[role], self.hub.names[role]
        lfs = {"size": len(data), "sha256": sha256(data), "pointerSize": 134}
        found: dict[str, Any] = {"id": repository(role), "sha": COMMITS[role], "gated": False}
        found["siblings"] = [{"rfilename": name, "size": len(data), "lfs": lfs}]
        found["cardData"] = {"license": "apache-2.0"}
        return found | self.hub.about.get(role, {})

    def send_file(self, role: str, *, body: bool) -> None:
        data = self.hub.sent.get(role, self.hub.files[role])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": f'"{sha256(self.hub.files[role])}"', "X-Repo-Commit": COMMITS[role]}
        headers["Content-Length"] = str(len(data) - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206 if start else 200, headers)
        if body:
            stop = self.hub.cut.get(role)
            if pause := self.hub.pause.get(role):
                self.wfile.write(data[start:pause])
                time.sleep(5)
                start = max(start, pause)
            self.wfile.write(data[start:stop])
            self.close_connection = stop is not None

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for where, packed in self.hub.encoding.items():
            headers |= {"Content-Encoding": packed} if where in self.path else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Quick:
    """The clock of the library, which waits a second before each new try."""

    time, monotonic, perf_counter = time.time, time.monotonic, time.perf_counter

    @staticmethod
    def sleep(_: float) -> None:
        """At once."""


@contextmanager
def running(files: dict[str, bytes], patch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, which the library takes for the one of its environment; nothing waits."""
    hub = HubServer(files)
    threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what of a chunk is there is lost
    patch.setenv("HF_ENDPOINT", hub.url)
    patch.delenv("HF_TOKEN", raising=False)
    for module in (file_download, _http):
        patch.setattr(module, "time", Quick)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
