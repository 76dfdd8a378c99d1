"""`capt-local serve` from the command line: keys, addresses, TLS, tasks, what a site forbids."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from capt_local import config as site_config
from capt_local.cli import app
from capt_local.errors import UsageError
from capt_local.serve.app import library
from tests.serve.conftest import Starts

KEY = "a-key-of-the-hospital"


def key_file(folder: Path, text: str = f"{KEY}\n\nanother-key-of-16\n", mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
    return paths


@pytest.mark.parametrize(
    ("flags", "keys", "problem"),
    [
        ("--host 0.0.0.0", KEY, "--api-key-file"),
        ("--host notes.example --api-key-file keys", KEY, "--tls-cert"),
        ("--tls-cert x", KEY, "go together"),
        ("--api-key-file keys", "short", "at least 16"),
        ("--api-key-file keys", "A" * 20, "random"),
        ("--api-key-file keys", "", "chmod 600"),
        ("--tasks nowhere", KEY, "no folder"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    flags: str, keys: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    key_file(tmp_path, keys or KEY, 0o600 if keys else 0o644)
    assert app.run(["serve", *flags.split()]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("forbidden", "flags", "refused"),
    [
        ("serve", [], True),
        ("network", ["--host", "10.0.0.1"], True),
        ("network", ["--port", "70000"], False),  # loopback is no network; the port is no port
    ],
)
def test_a_site_may_forbid_it(
    forbidden: str, flags: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = site_config.site_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[limits]\nforbid = ["{forbidden}"]\n')
    monkeypatch.setattr(site_config, "_check_owner", lambda *_: None)
    assert app.run(["serve", *flags]) == 2
    assert ("is forbidden here" in capsys.readouterr().err) == refused


def test_keys_of_a_file_over_tls(starts: Starts, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    flags = ["--tls-cert", str(cert), "--tls-key", str(key)]
    server = starts("--api-key-file", str(key_file(tmp_path)), *flags, key=KEY)
    assert server.url.startswith("https://") and "#" not in server.page
    with server.client(verify=str(cert)) as client:
        assert client.get("/v1/models").status_code == 200
        client.headers["authorization"] = "Bearer another-key-of-16"
        assert client.get("/v1/models").status_code == 200
        client.headers["authorization"] = "Bearer another-key-of-17"
        assert client.get("/v1/models").status_code == 401
    with pytest.raises(httpx2.TransportError):
        httpx2.get(server.url.replace("https", "http"))


def test_tasks_of_a_site_win_and_broken_ones_are_named(tmp_path: Path) -> None:
    names = [task.name for task in library()]
    assert names == ["summary", "problems", "medications", "letter", "question"]
    (tmp_path / "letter.toml").write_text('title = "Ours"\norder = 1\n')
    assert library(tmp_path)[0].title == "Ours" and len(library(tmp_path)) == len(names)
    for text in ("title = 1", "title", 'title = "x"\nother = 1', 'title = "x"\njson_schema = "{"'):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(UsageError, match=r"bad\.toml"):
            library(tmp_path)
