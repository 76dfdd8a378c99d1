"""A hub that fails, lies, or wants more than it should get."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from capt_local.bundle import store, verify
from capt_local.errors import ModelError, UsageError
from capt_local.hub import web
from capt_local.hub.address import Hub
from capt_local.hub.passing import Patience
from capt_local.hub.web import Web
from tests.bundle.travelling import everything, installed
from tests.hub.certificate import certificate
from tests.hub.mirror import Action, Handler, Mirror, cut_at, redirect, running, sends, status
from tests.hub.pulls import COMMITS, Puller, content, name, repositories, write_recipe

TOKEN = "hf_secretsecretsecret"


def refused(puller: Puller, recipe: Path) -> str:
    """The error of a pull that leaves the store as it was and repeats nothing of the hub's."""
    with pytest.raises(ModelError) as caught:
        puller.pull(recipe)
    assert installed() == {}
    said = " ".join([str(caught.value), *puller.said])
    for secret in ("SECRET", TOKEN, "127.0.0.1", "http://"):
        assert secret not in said
    return str(caught.value)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (status(401), "wants to know who asks"),
        (status(403), "forbids it"),
        (status(403, X_Error_Code="GatedRepo"), "is gated"),
        (status(404, X_Error_Code="RepoNotFound"), "does not have it"),
        (status(404, X_Error_Code="RevisionNotFound"), "no such revision"),
        (status(410), "does not have it"),
        (status(418), "answers 418, which is not understood"),
        (status(304), "answers 304"),
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_refusal_is_told_in_our_words_and_not_tried_again(
    mirror: Mirror, recipe_file: Path, action: Action, told: str, where: str
) -> None:
    mirror.order(where, action)
    puller = Puller(mirror)
    assert told in refused(puller, recipe_file)
    assert puller.waits == []


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_what_may_pass_is_tried_again(
    mirror: Mirror, recipe_file: Path, code: int, where: str
) -> None:
    mirror.order(where, status(code), status(code))
    puller = Puller(mirror)
    puller.pull(recipe_file)
    assert puller.waits == [1.0, 2.0] and len(puller.said) == 2
    assert "SECRET" not in " ".join(puller.said)


def test_what_does_not_pass_is_given_up(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("/resolve/", *[status(503)] * 3)
    assert "the hub answers 503, 3 times in a row" in refused(Puller(mirror), recipe_file)


def test_a_hub_that_asks_to_wait(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror)
    mirror.order("/api/", status(429, Retry_After="7"))
    puller.pull(recipe_file)
    assert puller.waits == [7.0]


def test_a_hub_that_asks_to_wait_for_long(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror)
    mirror.order("/api/", status(429, Retry_After="86400"))
    assert "asks to wait 86,400 seconds" in refused(puller, recipe_file)
    assert puller.waits == []


@pytest.mark.parametrize("gated", ["auto", "manual", True])
def test_gated_models_are_explained_and_never_fetched(
    mirror: Mirror, recipe_file: Path, gated: object
) -> None:
    mirror.repositories[name("expert")].gated = gated
    told = refused(Puller(mirror, token=TOKEN), recipe_file)
    assert "under their own name" in told and "models create" in told
    assert mirror.fetches() == []


def test_another_content_is_not_installed(mirror: Mirror, recipe_file: Path) -> None:
    data = content("base")[:-1] + b"!"
    mirror.order("base.Q4", sends(data))
    assert "its SHA-256 differs" in refused(Puller(mirror), recipe_file)
    assert not (store.user_folder().parent / "incoming" / "trio" / "base.gguf").exists()


@pytest.mark.parametrize("more", [1, 10_000_000, -1])
def test_another_size_is_noticed_before_it_is_fetched(
    mirror: Mirror, recipe_file: Path, more: int
) -> None:
    data = content("base")
    mirror.order("base.Q4", sends(data[: len(data) + min(more, 0)] + bytes(max(more, 0))))
    assert "another size than the hub has said" in refused(Puller(mirror), recipe_file)


def test_a_stream_without_end_is_read_to_the_size_that_was_told(
    mirror: Mirror, recipe_file: Path
) -> None:
    def endless(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        while True:  # until the other side has hung up
            handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    mirror.order("base.Q4", endless)
    assert "its SHA-256 differs" in refused(Puller(mirror), recipe_file)
    left = everything(store.user_folder().parent / "incoming")
    assert max(len(data or b"") for data in left.values()) <= 3_000_000


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Repo-Commit": "d" * 40},
        {"X-Linked-Etag": f'"{"0" * 64}"'},
        {"X-Linked-Size": "1"},
    ],
)
def test_what_the_hub_says_of_a_file_has_to_fit(
    mirror: Mirror, recipe_file: Path, headers: dict[str, str]
) -> None:
    mirror.order("base.Q4", sends(content("base"), headers))
    assert "is not the file that was chosen" in refused(Puller(mirror), recipe_file)


@pytest.mark.parametrize("told", ["bytes 5-39999/40000", "bytes 100-39999/50000", "x", None])
def test_a_wrong_range_is_not_gone_on_with(
    mirror: Mirror, recipe_file: Path, told: str | None
) -> None:
    headers = {"Content-Range": told} if told else {}
    mirror.order("expert.Q4", cut_at(100), sends(content("expert")[100:], headers, 206))
    assert "goes on elsewhere" in refused(Puller(mirror), recipe_file)


def test_a_revision_that_moved(mirror: Mirror, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", base=f'revision = "{"d" * 40}"')
    assert "no such revision" in refused(Puller(mirror), recipe)
    listing = mirror.repositories[name("base")].described(name("base"))
    mirror.order(f"/revision/{'d' * 40}", sends(json.dumps(listing).encode()))
    assert f"speaks of {COMMITS['base']}" in refused(Puller(mirror), recipe)


def test_a_pinned_digest_is_held_against_the_listing(mirror: Mirror, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", base=f'sha256 = "{"0" * 64}"')
    assert "is another file now" in refused(Puller(mirror), recipe)
    assert mirror.fetches() == []


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "main"},
        {"sha": None},
        {"id": "../../etc"},
        {"id": None},
        {"siblings": "x"},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "size": "9"}]},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "size": -1}]},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "lfs": {"size": 1, "sha256": "x"}}]},
        {"lastModified": "SECRET"},
        {"cardData": {"license": {"a": 1}}, "inferenceProviderMapping": "SECRET"},
    ],
)
def test_a_listing_that_is_not_understood(
    mirror: Mirror, recipe_file: Path, change: dict[str, Any]
) -> None:
    mirror.repositories[name("target")].about = change
    assert "is not understood" in refused(Puller(mirror), recipe_file)
    assert mirror.fetches() == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"id": NaN}', b"\xff", b"[" * 9000, b'{"a":1,"a":2}']
)
def test_an_answer_that_is_no_listing(mirror: Mirror, recipe_file: Path, body: bytes) -> None:
    mirror.order("/api/", sends(body))
    assert "is not understood" in refused(Puller(mirror), recipe_file)


HOSTILE = [
    "../../.ssh/authorized_keys.Q4_K_M.gguf",
    "/etc/x.Q4_K_M.gguf",
    "a\\b.Q4_K_M.gguf",
    "a\n.Q4_K_M.gguf",
    "\u202e.Q4_K_M.gguf",
    "-rf.Q4_K_M.gguf",
    ".hidden.Q4_K_M.gguf",
    "a/../b.Q4_K_M.gguf",
    "x" * 300 + ".Q4_K_M.gguf",
    "a?b#c.Q4_K_M.gguf",
]


@pytest.mark.parametrize("file", HOSTILE)
def test_hostile_names_are_never_chosen(mirror: Mirror, recipe_file: Path, file: str) -> None:
    repository = mirror.repositories[name("base")]
    repository.files = {file: content("base")}
    assert "there is no file of the name" in refused(Puller(mirror), recipe_file)
    # Beside the right one they do no harm.
    repository.files["base.Q4_K_M.gguf"] = content("base")
    Puller(mirror).pull(recipe_file)
    verify.verify(store.find("trio"))


def test_two_files_that_fit_are_not_guessed_between(mirror: Mirror, recipe_file: Path) -> None:
    mirror.repositories[name("base")].files["other.Q4_K_M.gguf"] = b"GGUF"
    assert "there is 2 files of the name" in refused(Puller(mirror), recipe_file)


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_what_comes_compressed_is_not_unpacked(
    mirror: Mirror, recipe_file: Path, where: str, encoding: str
) -> None:
    mirror.order(where, sends(gzip.compress(bytes(100_000)), {"Content-Encoding": encoding}))
    assert "comes compressed" in refused(Puller(mirror), recipe_file)


def test_a_listing_without_end_is_not_read_to_it(
    mirror: Mirror, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "LARGEST_ANSWER", 1000)
    mirror.order("/api/", sends(b" " * 5000))
    assert "far too long" in refused(Puller(mirror), recipe_file)


def test_a_listing_that_comes_drop_by_drop(mirror: Mirror, recipe_file: Path) -> None:
    puller = Puller(mirror, tries=2, times=[0.0, 100.0, 0.0, 100.0])
    assert "the hub is too slow, 2 times" in refused(puller, recipe_file)


def test_a_file_that_comes_drop_by_drop(mirror: Mirror, recipe_file: Path) -> None:
    """Each try brings a byte after a long time, and that is no progress."""
    planned = Puller(mirror).plan(recipe_file)
    puller = Puller(mirror, tries=3, times=[0.0, 61.0] * 3)
    mirror.order("target.Q4", *[cut_at(count) for count in (1, 2, 3)])
    with puller.web() as found, pytest.raises(ModelError, match=r"hardly anything .* 3 times"):
        from capt_local.hub.plan import pull

        pull(planned, found, lambda _: None)


def test_a_hub_that_says_nothing(mirror: Mirror, recipe_file: Path) -> None:
    import time

    mirror.order("/api/", *[lambda _: time.sleep(0.5)] * 2)
    puller = Puller(mirror, tries=2, answer=0.1)
    assert "nothing comes from the hub, 2 times" in refused(puller, recipe_file)


def test_a_hub_that_is_not_there(recipe_file: Path) -> None:
    with running() as gone:
        pass
    assert "cannot be reached, 3 times" in refused(Puller(gone), recipe_file)


def test_what_is_no_http(mirror: Mirror, recipe_file: Path) -> None:
    def talk(handler: Handler) -> None:
        handler.wfile.write(b"SSH-2.0-SECRET\r\n")
        handler.cut()

    mirror.order("/api/", *[talk] * 3)
    assert "the connection was cut" in refused(Puller(mirror), recipe_file)


def test_files_may_lie_on_another_host_which_gets_no_token(
    mirror: Mirror, recipe_file: Path
) -> None:
    with running() as other:
        other.repositories.update(mirror.repositories)
        path = f"/{name('target')}/resolve/{COMMITS['target']}/target.Q4_K_M.gguf"
        mirror.order("target.Q4", redirect(other.url + path), redirect(other.url + path))
        other.order("target.Q4", cut_at(1_000_000))
        Puller(mirror, token=TOKEN).pull(recipe_file)
        assert all(s.headers["authorization"] == f"Bearer {TOKEN}" for s in mirror.seen)
        assert [seen.range for seen in other.seen] == [None, "bytes=1000000-"]
        assert all("authorization" not in seen.headers for seen in other.seen)
        assert all("cookie" not in seen.headers for seen in other.seen)


def test_without_a_token_none_is_sent(
    mirror: Mirror, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password SECRET\n")
    (tmp_path / ".netrc").chmod(0o600)
    Puller(mirror).pull(recipe_file)
    assert all("authorization" not in seen.headers for seen in mirror.seen)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://user:SECRET@127.0.0.1/x",
        "http://169.254.169.254/latest",
        "http://[::ffff:10.0.0.1]/x",
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_where_the_hub_sends_on_to_is_looked_at(
    mirror: Mirror, recipe_file: Path, url: str, where: str
) -> None:
    mirror.order(where, redirect(url))
    assert "address that is not used" in refused(Puller(mirror), recipe_file)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://localhost/",
        "https://a.localhost./",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/",
        "https://0.0.0.0/",
        "https://169.254.169.254/",
        "https://[fe80::1]/",
    ],
)
def test_a_hub_elsewhere_does_not_lead_into_this_machine(url: str) -> None:
    from httpx2 import URL

    with pytest.raises(ModelError, match="nothing on this machine"):
        Hub.at("https://hub.invalid").check(URL(url))
    Hub.at("https://hub.invalid").check(URL("https://files.invalid/x"))


def test_sending_on_without_end(mirror: Mirror, recipe_file: Path) -> None:
    mirror.order("/api/", *[redirect("/api/models/round?x=1")] * 9)
    assert "sends on and on" in refused(Puller(mirror), recipe_file)


def test_a_listing_comes_from_the_hub_itself(mirror: Mirror, recipe_file: Path) -> None:
    with running() as other:
        mirror.order("/api/", redirect(f"{other.url}/api/models/x"))
        assert "to another host" in refused(Puller(mirror), recipe_file)
        assert other.seen == []


def test_a_repository_that_has_another_name_now(mirror: Mirror, recipe_file: Path) -> None:
    mirror.repositories["maker/renamed"] = mirror.repositories[name("base")]
    mirror.order(name("base"), redirect("/api/models/maker/renamed/revision/main?blobs=true"))
    planned = Puller(mirror).plan(recipe_file)
    assert f"{name('base')} is called maker/renamed at the hub now." in planned.notes


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "http://10.0.0.1",
        "ftp://127.0.0.1",
        "https://a:SECRET@example.org",
        "https://example.org/?token=SECRET",
        "mirror",
        "https://",
        "http://localhost.example.org",
        "https://exa mple.org",
        "x" * 100_000,
    ],
)
def test_mirrors_that_cannot_be_used(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Hub.at(url)
    assert "SECRET" not in str(caught.value)


def test_a_proxy_is_no_detour_to_this_machine(
    mirror: Mirror, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as proxy:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        Puller(mirror).pull(recipe_file)
        assert proxy.seen == []


def test_a_certificate_that_nobody_trusts(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(certificate(tmp_path)) as secure:
        secure.repositories.update(repositories())
        puller = Puller(secure)
        assert "certificate is not trusted" in refused(puller, recipe_file)
        assert (puller.waits, secure.seen) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "hub.pem"))
        puller.pull(recipe_file)
        verify.verify(store.find("trio"))


@pytest.mark.parametrize(
    "url",
    ["https://mirror.invalid/hub/", "http://127.0.0.1:9", "http://localhost", "http://[::1]:8"],
)
def test_mirrors_that_can_be_used(url: str) -> None:
    assert Hub.at(url).url == url.rstrip("/")


@pytest.mark.parametrize("token", ["a b", "a\nb", "é", "", "x" * 501])
def test_a_token_that_is_none_is_not_repeated(token: str) -> None:
    with pytest.raises(UsageError, match="is none: it has odd characters"):
        Web(Hub.at("http://127.0.0.1:9"), token, print, Patience())
