"""Requests that are slow, huge, cut, broken or from where they should not come; and who leaves."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx2
import openai
import pytest

from capt_local.decoding.batching import RequestResult
from capt_local.decoding.options import GenerateOptions
from capt_local.serve.engine import Engine
from tests.serve.conftest import CANARY, Running, Starts

ASK = {"messages": [{"role": "user", "content": f"{CANARY}: what is asthma?"}]}
LONG = {**ASK, "max_tokens": 800, "stream": True, "stop": ["\x00never"]}


def wait_for(found: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def dial(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def send(server: Running, data: bytes) -> bytes:
    """What comes back for raw bytes, until the server closes."""
    with closing(dial(server)) as connection:
        received = b""
        # A server that closes while it is written to may reset the connection.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
        return received


CHAT = "/v1/chat/completions"


def request(server: Running, body: bytes, *headers: str, path: str = CHAT) -> bytes:
    """The bytes of a request with the key."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {server.key}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def post(server: Running, body: bytes, *headers: str, path: str = CHAT) -> bytes:
    return send(server, request(server, body, "Connection: close", *headers, path=path))


def test_what_is_not_json_is_refused(server: Running) -> None:
    deep = b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    bodies = [
        b"", b"null", b"[]", b"{", b'"text"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1, "a": 2}', deep,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": ' + b"9" * 5000 + b"}", b'{"messages": 1e999}',
        json.dumps({CANARY: 1}).encode(), json.dumps({"messages": [{CANARY: 1}]}).encode(),
        json.dumps({"messages": CANARY}).encode(), json.dumps(ASK | {"stop": [1]}).encode(),
        json.dumps(ASK | {"seed": 1 << 70}).encode(), json.dumps(ASK | {"n": 1000}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "a\x00b"}]}).encode(),
    ]  # fmt: skip
    for body in bodies:
        answer = post(server, body, f"Content-Length: {len(body)}")
        assert answer.startswith(b"HTTP/1.1 400 "), (body[:60], answer)
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "invalid_request_error" and error["message"]
        assert CANARY.encode() not in answer


def test_what_is_too_large_is_refused_at_once(server: Running) -> None:
    assert b" 413 " in post(server, b"", "Content-Length: 10000000000")
    assert b" 413 " in post(server, b"", "Content-Length: 9000000", path="/report")
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    assert post(server, chunk * 9, "Transfer-Encoding: chunked")[9:12] in (b"413", b"")
    assert b" 400 " in post(server, b"", f"X-Large: {'x' * 200_000}")


def test_a_text_that_never_fits_is_not_even_counted(server: Running) -> None:
    for turns in ([("user", "word " * 200_000)], [("user", "a"), ("assistant", "b")] * 9_999):
        messages = [{"role": role, "content": text} for role, text in [*turns, ("user", "c")]]
        body = json.dumps({"messages": messages[-20_000:]}).encode()
        for path in ("/v1/chat/completions", "/count"):
            answer = post(server, body, f"Content-Length: {len(body)}", path=path)
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["code"] == "context_length_exceeded" and "never fit" in error["message"]


def test_a_call_that_nobody_waits_for_ends_no_answers() -> None:
    class Idle:
        models: ClassVar[dict[str, object]] = {}

        def generate_many(self, requests: Any, **_: object) -> Any:
            for index, _request in enumerate(filter(None, requests)):
                yield RequestResult(index, None, (), None)

        def forget(self) -> None:
            pass

    told, begun, gate = list[str](), threading.Event(), threading.Event()
    engine = Engine(
        cast(Any, Idle()), GenerateOptions(), parallel=1, waiting=1, forget_after=60,
        report=told.append,
    )  # fmt: skip
    engine.start()
    try:
        runs = engine.call(lambda: (begun.set(), gate.wait(10)))
        assert begun.wait(10)
        waits = engine.call(list)
        assert waits.cancel() and not runs.cancel()
        gate.set()
        assert engine.call(lambda: 7).result(10) == 7
    finally:
        engine.stop()
    assert not told


def test_what_is_not_http_is_refused(server: Running) -> None:
    key = f"Authorization: Bearer {server.key}\r\n".encode()
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"GET /\r\n\r\n",
        b"\r\n" * 5 + b"x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):  # fmt: skip
        assert re.match(rb"HTTP/1.1 4|$", send(server, data)), data
    for target in (b"/../../etc/passwd", b"/%2e%2e/x", b"/static/page.js", b"/v1"):
        request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + key
        assert send(server, request + b"\r\n").startswith(b"HTTP/1.1 404 ")
    upgrade = b"Connection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    upgraded = send(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + upgrade)
    assert upgraded.startswith(b"HTTP/1.1 200 ")  # is not upgraded


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:80"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": "https://localhost"}, 403),
        ({"host": "LOCALHOST:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": "Basic eDp5"}, 401),
    ],
    ids=str,
)
def test_who_may_come(server: Running, headers: dict[str, str], status: int) -> None:
    with server.client(headers=headers) as client:
        answer = client.get("/v1/models")
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
        assert client.request("OPTIONS", "/v1/models").status_code in (401, 403, 405)


def test_headers_keep_the_page_to_itself(server: Running) -> None:
    with httpx2.Client() as client:
        for path in ("/", "/page.js", "/page.css", "/icon.svg", "/health", "/openapi.json"):
            answer = client.get(server.url + path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/about", "/metrics", "/v1/models"):
            assert client.get(server.url + path).status_code == 401


def test_a_site_may_list_origins(starts: Starts) -> None:
    server = starts("--allow-origin", "https://ehr.example", "--allow-host", "notes.example")
    with server.client(headers={"origin": "https://ehr.example", "host": "notes.example"}) as own:
        answer = own.get("/v1/models")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://ehr.example"
        del own.headers["authorization"]
        asked = own.request("OPTIONS", "/v1/chat/completions")
        assert asked.status_code == 204 and "authorization" in str(asked.headers)
        assert own.get("/v1/models").status_code == 401
    with server.client(headers={"origin": "https://other.example"}) as other:
        assert other.get("/v1/models").status_code == 403


def test_slow_clients_hold_nobody(server: Running) -> None:
    """Half requests and unread answers; the others go on, and the half ones are closed."""
    half = [dial(server) for _ in range(40)]
    for number, connection in enumerate(half):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc"[: 10 + number])
    body = dial(server)
    body.sendall(request(server, b"{", "Content-Length: 100", path="/v1/completions"))
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=ASK | {"max_tokens": 3})
        assert answer.status_code == 200
    started = time.monotonic()
    for connection in half:
        connection.settimeout(20)
        with pytest.raises(ConnectionError), closing(connection):
            if not connection.recv(100):
                raise ConnectionError
    assert time.monotonic() - started < 15
    body.close()


def test_who_has_no_key_cannot_hold_a_connection(server: Running) -> None:
    """A body that goes on arriving, byte by byte, after its request was answered."""
    for head in (b"POST /v1/completions", b"GET /health"):
        with closing(dial(server)) as connection:
            connection.sendall(head + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n")
            with pytest.raises(ConnectionError):
                for _ in range(30):
                    connection.sendall(b"x")
                    time.sleep(0.5)


def test_a_hostile_schema_holds_up_nobody_else(server: Running) -> None:
    """Its pattern takes exponential time where it is matched by going back."""
    schema = {"type": "string", "pattern": "^(?:(?:a+)+c|a{40})$", "minLength": 40, "maxLength": 40}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with server.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            json=ASK | {"max_tokens": 60, "response_format": form, "capt": {}},
        )
        assert answer.json()["choices"][0]["message"]["content"] == f'"{"a" * 40}"'


def test_few_files_are_read_at_once(server: Running) -> None:
    """Each may take a minute and much memory; the others are told to come again."""
    held = [dial(server) for _ in range(3)]
    for connection in held:
        connection.sendall(request(server, b"", "Content-Length: 99", path="/documents?kind=rtf"))
    time.sleep(1)
    with server.client() as client:
        rtf = rb"{\rtf1 x}"
        assert client.post("/documents?kind=rtf", content=rtf).status_code == 503
        for connection in held:
            connection.close()
        wait_for(lambda: client.post("/documents?kind=rtf", content=rtf).status_code == 200)


def test_a_client_that_leaves_frees_its_place(server: Running) -> None:
    before = server.metric('capt_requests_total{outcome="left"}')
    for number in range(8):  # more than there are places
        with server.client() as client, client.stream(
            "POST", "/v1/chat/completions", json=LONG
        ) as answer:  # fmt: skip
            next(answer.iter_raw())
        if number % 2:  # and one that leaves before anything has come
            data = json.dumps(LONG | {"stream": False}).encode()
            with closing(dial(server)) as connection:
                connection.sendall(request(server, data, f"Content-Length: {len(data)}"))
    wait_for(lambda: server.metric("capt_running") == 0)
    wait_for(lambda: server.metric('capt_requests_total{outcome="left"}') >= before + 8)


def test_a_full_queue_says_when_to_come_again(starts: Starts) -> None:
    server = starts("--parallel", "1")
    statuses: list[int] = []
    enough = threading.Event()

    def ask() -> None:
        with server.client() as client, client.stream(
            "POST", "/v1/chat/completions", json=LONG
        ) as answer:  # fmt: skip
            statuses.append(answer.status_code)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) > 0
                enough.set()
            enough.wait(60)

    threads = [threading.Thread(target=ask) for _ in range(45)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    for thread in threads:
        thread.join(60)
    assert set(statuses) == {200, 503}
    wait_for(lambda: server.metric("capt_running") + server.metric("capt_waiting") == 0)
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=ASK | {"max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_in_mid_answer(
    starts: Starts, how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sees an error, and nothing is left behind."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "TMPDIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(home))
    server = starts()
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0
    ) as client:  # fmt: skip
        stream = client.chat.completions.create(model="demo", **LONG)
        next(iter(stream))
        server.process.send_signal(how)
        with pytest.raises((openai.APIError, httpx2.TransportError)):
            for _ in stream:
                pass
    assert server.process.wait(20) in (143, -9)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert CANARY not in server.errors.read_text()


def test_counts_hold_no_text(server: Running) -> None:
    with server.client() as client:
        client.post("/v1/chat/completions", json=ASK | {"max_tokens": 2, "user": CANARY})
        client.get(f"/{CANARY}", params={CANARY: CANARY}, headers={"x-note": CANARY})
        told = client.get("/metrics").text
    assert CANARY not in told
    assert all(
        re.fullmatch(r'#.*|capt_\w+(\{\w+="[\w-]+"\})? \d+', each) for each in told.splitlines()
    )


@pytest.mark.slow
def test_thousands_of_generated_requests(starts: Starts) -> None:
    """Schemathesis reads our description; install it beside, it is no part of the test extra."""
    program = shutil.which("schemathesis")
    if program is None:
        pytest.skip("schemathesis is not on the path")
    server = starts("-n", "1")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,ignored_auth"
    done = subprocess.run(
        [program, "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {server.key}",
         "--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", "1500",
         "--workers", "4", "--continue-on-failure", "--request-timeout", "60"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Its exit code is not asked: its own generators fail now and then (SystemError of Python 3.11).
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None and found[1] == found[2], done.stdout[-5000:]
    assert int(found[1]) >= 10_000 and len(server.errors.read_text().splitlines()) == 1
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
