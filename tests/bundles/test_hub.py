"""A pull from a hub on this machine: what is asked, what is refused, how it goes on."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import file_download

from capt_local.bundles import hub, store, verify
from capt_local.errors import ModelError, UsageError
from tests.bundles.certificate import certificate
from tests.bundles.mirror import Handler, Mirror, cut_at, redirect, running, sends, sha256, status
from tests.bundles.pulls import (
    COMMITS,
    SIZES,
    Puller,
    content,
    name,
    recipe_text,
    repositories,
    write_recipe,
)
from tests.bundles.travelling import everything, installed

TOKEN = "hf_canary"


@pytest.fixture(autouse=True)
def no_network() -> None:
    """This machine may be asked; that nobody else is, the guard in the interpreter sees to."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits a second before each new try."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(hub, "_CHUNK", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with running() as found:
        found.repositories.update(repositories())
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of three models without pins."""
    return write_recipe(tmp_path / "trio.toml")


def refused(puller: Puller, recipe: Path) -> str:
    with pytest.raises(ModelError) as caught:
        puller.pull(recipe)
    told = str(caught.value)
    assert "SECRET" not in told and TOKEN not in told and "\n" not in told
    assert installed() == {}
    return told


def test_three_files_become_a_bundle(mirror: Mirror, recipe: Path) -> None:
    looked: list[str] = []
    shares: list[float] = []
    found = Puller(mirror).pull(
        recipe,
        lambda bundle: looked.append(bundle.id),
        report=lambda file, share: shares.append(share),
    )
    assert (found.fresh, looked, shares[-1]) == (True, ["trio"], 1.0)
    bundle = store.find("trio")
    verify.verify(bundle)
    for role, model in bundle.models.items():
        assert model.path.read_bytes() == content(role)
        assert model.source == f"hub:{name(role)}@{COMMITS[role]}/{role}.Q4_K_M.gguf"
        assert (model.sha256, model.licence) == (sha256(content(role)), "apache-2.0")
        assert model.path.stat().st_mode & 0o777 == 0o600
    assert bundle.signer is None
    above = store.user_folder().parent
    left = {p.name for p in above.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert left == {"bundle.toml", "target.gguf", "expert.gguf", "base.gguf"}


def test_only_what_is_needed_is_asked_for_and_nothing_is_told(mirror: Mirror, recipe: Path) -> None:
    Puller(mirror).pull(recipe)
    paths = [seen.path.partition("?")[0] for seen in mirror.seen]
    api = [f"/api/models/{name(role)}" for role in SIZES]
    files = [f"/{name(r)}/resolve/{COMMITS[r]}/{r}.Q4_K_M.gguf" for r in SIZES]
    assert (paths, mirror.heads) == (api + files, [])
    for seen in mirror.seen:
        known = {"host", "user-agent", "accept", "accept-encoding", "connection"}
        assert set(seen.headers) <= known
        assert seen.headers["user-agent"].startswith("capt-local/")
        assert seen.headers["accept-encoding"] == "identity"


def test_what_is_pinned_and_what_is_not(mirror: Mirror, recipe: Path, tmp_path: Path) -> None:
    _, notes = Puller(mirror).plan(recipe)
    assert len([note for note in notes if note.startswith("FIRST USE")]) == 3
    pins = {
        role: f'revision = "{COMMITS[role]}"\nsha256 = "{sha256(content(role))}"' for role in SIZES
    }
    assert Puller(mirror).plan(write_recipe(tmp_path / "pinned.toml", **pins))[1] == []
    wrong = write_recipe(tmp_path / "r.toml", base=f'sha256 = "{"0" * 64}"')
    assert "is another file now" in refused(Puller(mirror), wrong)
    moved = write_recipe(tmp_path / "m.toml", base=f'revision = "{"d" * 40}"')
    assert "does not have it at that revision" in refused(Puller(mirror), moved)
    assert mirror.fetches() == []


def stopped(mirror: Mirror, recipe: Path, file: str, at: int) -> None:
    """A pull in which a file comes up to a byte and no further, however often it is tried."""
    mirror.order(file, cut_at(at), *[status(503)] * 20)
    assert "same command again" in refused(Puller(mirror), recipe)
    mirror.forget_orders()


def test_after_an_end_the_same_command_goes_on(mirror: Mirror, recipe: Path) -> None:
    stopped(mirror, recipe, "target.Q4", 2_000_000)
    before = len(mirror.fetches())
    Puller(mirror).pull(recipe)
    ranges = [seen.range for seen in mirror.fetches()[before:] if "target" in seen.path]
    assert ranges == ["bytes=2000000-"]
    verify.verify(store.find("trio"))


def test_the_first_use_holds_when_the_file_changes(mirror: Mirror, recipe: Path) -> None:
    stopped(mirror, recipe, "target.Q4", 1_000_000)
    mirror.repositories[name("target")].files["target.Q4_K_M.gguf"] = content("target")[:-1] + b"!"
    assert "its SHA-256 differs" in refused(Puller(mirror), recipe)


def test_what_was_there_is_read_again_and_not_trusted(mirror: Mirror, recipe: Path) -> None:
    stopped(mirror, recipe, "expert.Q4", 100)
    part = store.staging_folder() / "trio" / "target.gguf"
    with part.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"!")
    assert "its SHA-256 differs" in refused(Puller(mirror), recipe)
    Puller(mirror).pull(recipe)
    verify.verify(store.find("trio"))


def test_another_content_is_not_installed(mirror: Mirror, recipe: Path) -> None:
    mirror.order("base.Q4", sends(content("base")[:-1] + b"!"))
    assert "its SHA-256 differs" in refused(Puller(mirror), recipe)
    assert not (store.staging_folder() / "trio" / "base.gguf").exists()


def test_after_a_cut_it_goes_on_by_itself(mirror: Mirror, recipe: Path) -> None:
    mirror.order("target.Q4", cut_at(1_200_000), cut_at(2_500_000))
    Puller(mirror).pull(recipe)
    ranges = [seen.range for seen in mirror.fetches() if "target" in seen.path]
    assert ranges == [None, "bytes=1200000-", "bytes=2500000-"]
    verify.verify(store.find("trio"))


def test_a_stream_without_end_is_bounded(mirror: Mirror, recipe: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        while True:  # until the other side has hung up
            handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    mirror.order("base.Q4", endless)
    assert "more than it said" in refused(Puller(mirror), recipe)
    left = everything(store.staging_folder())
    assert max(len(data or b"") for data in left.values()) <= 3_000_000 + (1 << 17)


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_what_comes_compressed_is_not_unpacked(mirror: Mirror, recipe: Path, where: str) -> None:
    mirror.order(where, sends(gzip.compress(bytes(100_000)), {"Content-Encoding": "gzip"}))
    assert "comes compressed" in refused(Puller(mirror), recipe)


def test_a_listing_without_end_is_not_read_to_it(
    mirror: Mirror, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_LARGEST_LISTING", 1000)
    mirror.order("/api/", sends(b" " * 5000))
    assert "more than it said" in refused(Puller(mirror), recipe)


@pytest.mark.parametrize("code", [401, 416, 429])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_refusal_is_told_in_our_words(
    mirror: Mirror, recipe: Path, code: int, where: str
) -> None:
    mirror.order(where, *[status(code)] * 20)
    assert "the hub" in refused(Puller(mirror), recipe)


def test_a_hub_does_not_say_how_long_we_sleep(
    mirror: Mirror, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(file_download.time, "sleep", slept.append)
    mirror.order("/resolve/", *[status(429, Retry_After="86400")] * 20)
    assert "the hub answers 429" in refused(Puller(mirror), recipe)
    assert sum(slept) < 60


def test_gated_models_are_explained_and_never_fetched(mirror: Mirror, recipe: Path) -> None:
    mirror.repositories[name("expert")].gated = "auto"
    told = refused(Puller(mirror, token=TOKEN), recipe)
    assert "under their own name" in told and "models create" in told
    assert mirror.fetches() == []


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "main"},
        {"id": "../../etc"},
        {"siblings": "x"},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "size": -1}]},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "lfs": {"size": 1, "sha256": "x"}}]},
        {"lastModified": "SECRET"},
    ],
)
def test_a_listing_that_is_not_understood(
    mirror: Mirror, recipe: Path, change: dict[str, Any]
) -> None:
    mirror.repositories[name("target")].about = change
    assert "is not understood" in refused(Puller(mirror), recipe)
    assert mirror.fetches() == []


@pytest.mark.parametrize(
    "file",
    [
        "../../.ssh/authorized_keys.Q4_K_M.gguf",
        "/etc/x.Q4_K_M.gguf",
        "a\n.Q4_K_M.gguf",
        "-rf.Q4_K_M.gguf",
        "x" * 300 + ".Q4_K_M.gguf",
        "a?b#c.Q4_K_M.gguf",
    ],
)
def test_hostile_names_are_never_chosen(mirror: Mirror, recipe: Path, file: str) -> None:
    mirror.repositories[name("base")].files = {file: content("base")}
    assert "no files have the name" in refused(Puller(mirror), recipe)


def test_files_may_lie_on_another_host_which_gets_no_token(mirror: Mirror, recipe: Path) -> None:
    with running() as other:
        other.repositories.update(mirror.repositories)
        path = f"/{name('target')}/resolve/{COMMITS['target']}/target.Q4_K_M.gguf"
        mirror.order("target.Q4", redirect(other.url + path))
        Puller(mirror, token=TOKEN).pull(recipe)
        assert all(s.headers["authorization"] == f"Bearer {TOKEN}" for s in mirror.seen)
        assert len(other.seen) == 1
        assert all("authorization" not in seen.headers for seen in other.seen)


def test_without_a_token_none_is_sent(
    mirror: Mirror, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password SECRET\n")
    (tmp_path / ".netrc").chmod(0o600)
    Puller(mirror).pull(recipe)
    assert all("authorization" not in seen.headers for seen in mirror.seen)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x",
        "https://user:SECRET@127.0.0.1/x",
        "http://169.254.169.254/latest",
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_where_the_hub_sends_on_to_is_looked_at(
    mirror: Mirror, recipe: Path, url: str, where: str
) -> None:
    mirror.order(where, redirect(url))
    told = refused(Puller(mirror), recipe)
    assert "address that is not used" in told or "connection" in told


@pytest.mark.parametrize(
    "url",
    [
        "https://a.localhost./",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/",
        "https://0.0.0.0/",
        "https://169.254.169.254/",
        "https://[fe80::1]/",
    ],
)
def test_a_hub_elsewhere_does_not_lead_into_this_machine(url: str) -> None:
    import httpx2

    with hub.Hub("https://hub.invalid", None) as opened:
        with pytest.raises(ModelError, match="nothing on this machine"):
            opened._check_request(httpx2.Request("GET", url))
        opened._check_request(httpx2.Request("GET", "https://files.invalid/x"))


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1",
        "https://a:SECRET@example.org",
        "https://example.org/?token=SECRET",
        "mirror",
        "http://localhost.example.org",
    ],
)
def test_mirrors_that_cannot_be_used(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub.Hub(url, None)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(UsageError, match="is none: it has odd characters"):
        hub.Hub("http://127.0.0.1:9", "SECRET \n")


def test_a_certificate_that_nobody_trusts(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(certificate(tmp_path)) as secure:
        secure.repositories.update(repositories())
        assert "certificate is not trusted" in refused(Puller(secure), recipe)
        assert secure.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "hub.pem"))
        Puller(secure).pull(recipe)
        verify.verify(store.find("trio"))


def test_a_proxy_is_no_detour_to_this_machine(
    mirror: Mirror, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as proxy:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        Puller(mirror).pull(recipe)
        assert proxy.seen == []


def test_a_full_disk_is_told_before_anything_is_fetched(
    mirror: Mirror, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "not enough room" in refused(Puller(mirror), recipe)
    assert mirror.fetches() == []


# --- recipes


def test_the_recipes_of_the_package() -> None:
    found = {each.id: each for each in hub.recipes()}
    by_hand = {name for name, each in found.items() if each.by_hand}
    assert by_hand == {"paper", "medgemma", "asclepius"}
    assert set(found) - by_hand == {"llama3-med", "med42", "permissive", "meditron"}
    for each in found.values():
        assert list(each.models) == ["target", "expert", "base"]
        assert each.models["expert"].style is each.models["base"].style
        assert all(bool(part.repository) is not bool(each.by_hand) for part in each.models.values())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("schema = 1", "schema = 2", "schema is none"),
        ('id = "trio"', 'id = "../trio"', "id must be"),
        ('title = "A trio"', "", "title is missing"),
        ('title = "A trio"', 'title = "A trio"\nurl = "x"', "url is not known"),
        ('title = "A trio"', 'title = "\\u001b"', "title holds control"),
        ('licence = "apache-2.0"', 'licence = ""', "models.target.licence must be one word"),
        ("maker/target-GGUF", "maker/../target", "repository must be OWNER/NAME"),
        ('file = "*Q4_K_M.gguf"', 'file = "../x.gguf"', "the path of a .gguf file"),
        ('file = "*Q4_K_M.gguf"', 'file = "**.gguf"', "the path of a .gguf file"),
        ('file = "*Q4_K_M.gguf"', 'revision = "main"\nfile = "x.gguf"', "branches move"),
        ('file = "*Q4_K_M.gguf"', 'sha256 = "abc"\nfile = "x.gguf"', "sha256 must be a SHA-256"),
        ("[models.base]", "[models.other]", "there is another one"),
        ("[models.target]", "[models.expert-2]", "target is missing"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    file = tmp_path / "r.toml"
    assert old in recipe_text()
    file.write_text(recipe_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ModelError, match=re.escape(told)):
        hub.read_recipe(file)
