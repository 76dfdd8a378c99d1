"""A pull from a hub on this machine: what is requested, what is refused, how it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants

from capt_local.bundles import hub, store
from capt_local.bundles.install import Staging
from capt_local.bundles.manifest import Bundle
from capt_local.errors import CaptError, ModelError, UsageError
from tests.bundles.hub_server import (
    COMMITS,
    ROLES,
    HubServer,
    repository,
    running,
    sha256,
    write_recipe,
)

SIZES = {"target": 3_000_000, "expert": 40_000, "base": 30_000}


@pytest.fixture(autouse=True)
def no_network() -> None:
    """This machine may be asked; that nobody else is, the guard in the interpreter sees to."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {role: f"GGUF {role} ".encode().ljust(SIZES[role], b"x") for role in ROLES}
    with running(files, monkeypatch) as found:
        yield found


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe of three models without pins."""
    return write_recipe(tmp_path / "trio.toml")


def pull(recipe: str) -> Bundle:
    found = hub.find_recipe(recipe)
    files = hub.find_files(found)
    with Staging(store.user_folder() / "trio") as staging:
        shutil.rmtree(staging.folder, ignore_errors=True)
        staging.folder.mkdir()
        return hub.download(found, files, staging)


def refused(recipe: str) -> str:
    with pytest.raises(CaptError) as caught:
        pull(recipe)
    told = str(caught.value)
    assert "SECRET" not in told and "127.0.0.1" not in told and "\n" not in told
    return told


def test_files_and_digests(server: HubServer, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(recipe).parent))
    netrc = Path(recipe).with_name(".netrc")
    netrc.write_text("machine 127.0.0.1 login a password SECRET\n")
    netrc.chmod(0o600)
    bundle = pull(recipe)
    for role, model in bundle.models.items():
        assert model.path == store.staging_folder() / "trio" / f"{role}.gguf"
        assert model.path.read_bytes() == server.files[role]
        assert model.path.stat().st_mode & 0o777 == 0o600
        assert model.source == f"hub:{repository(role)}@{COMMITS[role]}/{role}.Q4_K_M.gguf"
        assert (model.sha256, model.licence) == (sha256(server.files[role]), "apache-2.0")
    assert not (store.staging_folder() / "trio.download").exists()
    files = [f"/{repository(r)}/resolve/{COMMITS[r]}/{r}.Q4_K_M.gguf" for r in ROLES]
    paths = [path for path, _ in server.seen]
    assert paths == [f"/api/models/{repository(r)}" for r in ROLES] + files
    assert all("authorization" not in headers for _, headers in server.seen)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.find_files(hub.find_recipe(recipe))
    assert server.seen[-1][1]["authorization"] == "Bearer hf_canary"


def test_what_is_pinned_and_what_is_not(server: HubServer, tmp_path: Path) -> None:
    def found(**pins: str) -> set[str | None]:
        recipe = hub.find_recipe(write_recipe(tmp_path / "r.toml", **pins))
        return {file.sha256 for file in hub.find_files(recipe).values()}

    def pin(role: str) -> str:
        return f'revision = "{COMMITS[role]}"\nsha256 = "{sha256(server.files[role])}"'

    ours = {sha256(data) for data in server.files.values()}
    assert found() == found(**{role: pin(role) for role in ROLES}) == ours
    lfs = {"rfilename": "target.Q4_K_M.gguf", "size": SIZES["target"]}
    server.about["target"] = {"siblings": [lfs]}  # a hub that names no digest
    assert None in found() and found(target=pin("target")) == ours
    with pytest.raises(ModelError, match="is another file now than the recipe pins"):
        found(base=f'sha256 = "{"0" * 64}"')
    with pytest.raises(ModelError, match="not there at that revision"):
        found(base=f'revision = "{"d" * 40}"')
    assert server.fetches() == []


def test_another_content_is_deleted(server: HubServer, recipe: str) -> None:
    server.sent["base"] = server.files["base"][:-1] + b"!"
    assert "is not the file that it should be" in refused(recipe)
    left = [
        path for path in (store.staging_folder() / "trio.download").rglob("*") if path.is_file()
    ]
    assert sorted(path.name for path in left) == ["expert.Q4_K_M.gguf", "target.Q4_K_M.gguf"]
    server.sent.clear()
    pull(recipe)
    assert [len(server.fetches(role)) for role in ROLES] == [1, 1, 2]


def test_no_more_is_written_than_the_hub_has_said(server: HubServer, recipe: str) -> None:
    server.sent["target"] = server.files["target"] + b"x" * 5_000_000
    assert "download failed" in refused(recipe)
    [left] = (store.staging_folder() / "trio.download").rglob("target*")
    assert left.stat().st_size <= SIZES["target"]


def test_after_a_cut_the_same_command_goes_on(server: HubServer, recipe: str) -> None:
    server.cut["target"] = 2_000_000
    assert "same command again" in refused(recipe)
    server.cut.clear()
    before = len(server.fetches())
    bundle = pull(recipe)
    ranges = [seen.get("range") for seen in server.fetches("target")[before:]]
    assert ranges == ["bytes=2000000-"]
    assert bundle.models["target"].sha256 == sha256(server.files["target"])


@pytest.mark.parametrize("status", [200, 401])
def test_no_answer_without_end_is_read(
    server: HubServer, recipe: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_LARGEST_LISTING", 200)
    server.status["/api/"] = status
    server.about["target"] = {"tags": ["x" * 1000]}
    told = refused(recipe)
    assert "download failed" in told if status == 200 else "401" in told
    server.about.clear()
    monkeypatch.undo()


def test_nor_one_behind_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/large":
            return httpx2.Response(200, content=iter([b"x" * 1000]))
        return httpx2.Response(302, headers={"location": "/large"})

    monkeypatch.setattr(hub, "_LARGEST_LISTING", 200)
    client = hub._client()
    client._transport = httpx2.MockTransport(answer)
    assert len(client.get("http://hub/file", follow_redirects=True).content) == 1000
    with pytest.raises(ValueError, match="too much"):
        client.get("http://hub/api/models", follow_redirects=True)


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_what_is_packed_is_not_unpacked(server: HubServer, recipe: str, where: str) -> None:
    server.encoding[where] = "gzip"
    assert "download failed (ValueError)" in refused(recipe)


@pytest.mark.parametrize("code", [401, 416, 429])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_refusal_is_told_in_our_words(
    server: HubServer, recipe: str, code: int, where: str
) -> None:
    server.status[where] = code
    assert "the hub answers" in refused(recipe) or "download failed" in refused(recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "main"},
        {"siblings": "x"},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "size": -1}]},
        {"siblings": [{"rfilename": "a.Q4_K_M.gguf", "lfs": {"size": 1, "sha256": "x"}}]},
        {"lastModified": "SECRET"},
    ],
)
def test_a_listing_that_is_not_understood(
    server: HubServer, recipe: str, change: dict[str, Any]
) -> None:
    server.about["target"] = change
    assert "is not understood" in refused(recipe) or "download failed" in refused(recipe)
    assert server.fetches() == []


@pytest.mark.parametrize(
    "stem", ["../../.ssh/authorized_keys", "/etc/x", "a\n", "-rf", "x" * 300, "a?b#c"]
)
def test_hostile_names_are_never_chosen(server: HubServer, recipe: str, stem: str) -> None:
    server.names["base"] = f"{stem}.Q4_K_M.gguf"
    assert "no files have the name" in refused(recipe)


def test_a_full_disk_is_told_before_anything_is_fetched(
    server: HubServer, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "not enough room" in refused(recipe)
    assert server.fetches() == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ENDPOINT", "http://10.0.0.1", "https"),
        ("ENDPOINT", "http://127.0.0.1:x@10.0.0.1", "https"),
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set"),
    ],
)
def test_an_environment_without_a_hub(
    server: HubServer, recipe: str, name: str, value: object, told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, name, value)
    with pytest.raises(UsageError, match=told):
        pull(recipe)
    assert server.seen == []


# --- recipes


def test_the_recipes_of_the_package() -> None:
    found = hub.recipes()
    assert set(found) == {"llama3-med", "med42", "permissive", "meditron"}
    for each in found.values():
        assert list(each.models) == ["target", "expert", "base"]
        assert each.models["expert"].style is each.models["base"].style


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('id = "trio"', 'schema = 2\nid = "trio"', "schema is none"),
        ('id = "trio"', 'id = "../trio"', "id must be"),
        ('title = "A trio"', "", "title is missing"),
        ('title = "A trio"', 'title = "A trio"\nurl = "x"', "url is not known"),
        ('title = "A trio"', 'title = "\\u001b"', "title holds control"),
        ('version = "1"', 'version = "new"', "version must be numbers"),
        ('licence = "apache-2.0"', 'licence = ""', "licence must be one word"),
        ("maker/target-GGUF", "maker/../target", "repository must be OWNER/NAME"),
        ('file = "*Q4_K_M.gguf"', 'file = "x.bin"', "must be the path of a .gguf file"),
        ('file = "*Q4_K_M.gguf"', 'revision = "main"\nfile = "x.gguf"', "branches move"),
        ('file = "*Q4_K_M.gguf"', 'sha256 = "abc"\nfile = "x.gguf"', "sha256 must be a SHA-256"),
        ('file = "*Q4_K_M.gguf"', f'file = "{"*a" * 40}.gguf"', "with three \\* at most"),
        ("[models.base]", "[models.judge]", "models.roles are target"),
        ('id = "trio"', 'recipe = "trio"', "recipe must be a list"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    file = Path(write_recipe(tmp_path / "r.toml"))
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ModelError, match=told) as caught:
        hub.find_recipe(str(file))
    assert str(caught.value).startswith(str(file)) and "\x1b" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no recipe of that name; known: llama3-med"):
        hub.find_recipe("x")
    with pytest.raises(ModelError, match="cannot be read"):
        hub.find_recipe(str(tmp_path / "none.toml"))
