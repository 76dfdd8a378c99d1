"""Who has signed is told everywhere, and a site can forbid what its own keys have not signed."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import capt_local.model_checks  # noqa: F401  before a fake stands in the place of its package
from capt_local import config as site_config
from capt_local.bundles import store
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle, Signer
from capt_local.provenance import about_bundle
from tests.bundle_files import describe
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script
from tests.tiny_models import tiny_gguf


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site's file, that this account may write as if it were root."""

    monkeypatch.setattr(site_config, "_check_owner", lambda *_: None)
    file = site_config.site_file()
    file.parent.mkdir(parents=True)
    return file


@pytest.fixture
def archive(run: Run, tmp_path: Path) -> Path:
    """A bundle on a stick, signed with the key `house`."""
    folder = tmp_path / "from"
    folder.mkdir()
    file = tiny_gguf(folder / "target.gguf", seed=1)
    models = {"target": describe("target", file)}
    write_manifest(Bundle(id="tiny", models=models, version="1"), folder)
    assert run("models", "keygen", "-o", str(tmp_path / "house")).code == 0
    place = tmp_path / "tiny.capt"
    key = str(tmp_path / "house.key")
    assert run("models", "export", str(folder), "-o", str(place), "--key", key).code == 0
    return place


def take(run: Run, archive: Path) -> None:
    result = run("models", "import", str(archive), "--key", str(archive.with_name("house.pub")))
    assert result.code == 0, result.err


def trust_for_all(tmp_path: Path, site: Path) -> None:
    """The administrator installs the key."""
    (site.parent / "keys").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "house.pub", site.parent / "keys")


def test_an_unsigned_bundle_is_called_so(run: Run, archive: Path, tmp_path: Path) -> None:
    for verb in (("models", "show"), ("doctor", "-m")):
        shown = run(*verb, str(tmp_path / "from"))
        assert "unsigned" in shown.out and "nobody trusted" not in shown.out, verb


FORBID = "[limits]\nunsigned-bundles = false\n"


def test_the_signer_is_told(run: Run, archive: Path, tmp_path: Path) -> None:
    fingerprint = run("models", "trust", str(tmp_path / "house.pub")).out.split()[-1]
    assert run("models", "import", str(archive)).code == 0
    told = json.loads(run("models", "list", "--json").out)["bundles"]
    listed = {each["id"]: each for each in told}
    assert listed["tiny"]["signer"] == {"key": fingerprint, "name": "house"}
    assert listed["demo"]["signer"] is None
    assert "house" in run("models", "list").out
    shown = json.loads(run("models", "show", "tiny", "--json").out)["bundle"]
    assert shown["signer"] == {"key": fingerprint, "name": "house"}
    assert len(shown["manifest_sha256"]) == 64
    assert f"house ({fingerprint})" in " ".join(run("models", "show", "tiny").out.split())
    assert f"signed by house ({fingerprint})" in run("models", "verify", "tiny").out


def test_the_signer_stands_in_the_provenance(
    run: Run, script: Script, archive: Path, tmp_path: Path
) -> None:
    take(run, archive)
    result = run("generate", "-m", "tiny", "-p", "x", "--json", "--method", "target")
    assert result.code == 0, result.err
    bundle = script.calls[0]["bundle"]
    assert bundle.signer == Signer(bundle.signer.key, "house")
    about = json.loads(result.out)["provenance"]["bundle"]
    assert about == about_bundle(bundle)
    assert about["signer"] == {"key": bundle.signer.key, "name": "house"}
    assert about["manifest_sha256"] == bundle.manifest_sha256 is not None


def unpack(archive: Path) -> None:
    """The same bundle as a folder beside the archive."""
    with tarfile.open(archive) as tar:
        tar.extractall(archive.with_name("folder"), filter="data")


def test_a_manifest_that_was_changed_behind_its_signature(
    run: Run, script: Script, archive: Path, tmp_path: Path
) -> None:
    take(run, archive)
    file = store.user_folder() / "tiny" / "bundle.toml"
    file.write_text(file.read_text().replace('version = "1"', 'version = "9"'))
    for verb in (["generate", "-p", "x", "-m"], ["models", "show"], ["models", "verify"]):
        result = run(*verb, "tiny")
        assert (result.code, result.out) == (3, "")
        assert "The signature does not fit the manifest" in result.err
    listed = run("models", "list")
    assert listed.code == 3
    assert "tiny" not in listed.out and "does not fit the manifest" in listed.err
    assert not script.calls


@pytest.mark.parametrize("empty", [False, True])
def test_a_signature_that_is_gone(
    empty: bool, run: Run, script: Script, archive: Path, tmp_path: Path
) -> None:
    take(run, archive)
    place = store.user_folder() / "tiny" / "bundle.sig"
    place.unlink()
    if empty:
        place.write_bytes(b"")
    for verb in (
        ["generate", "-p", "x", "-m"], ["models", "show"], ["models", "verify"], ["doctor", "-m"]
    ):  # fmt: skip
        result = run(*verb, "tiny")
        assert result.code == 3 and "was imported with a signature" in result.out + result.err
    listed = run("models", "list")
    assert listed.code == 3 and "was imported with a signature" in listed.err
    assert not script.calls
    take(run, archive)  # the same version mends it
    assert run("models", "verify", "tiny").code == 0


def refused(run: Run, site: Path, *arguments: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
    assert str(site) in result.err and "unsigned-bundles" in result.err


def test_a_site_forbids_what_nobody_has_signed(
    run: Run, script: Script, archive: Path, site: Path, tmp_path: Path
) -> None:
    unpack(archive)
    folder = str(tmp_path / "from")
    take(run, archive)
    site.write_text(FORBID)
    refused(run, site, "generate", "{models}", "-p", "x")  # files given by their paths
    refused(run, site, "generate", "-m", folder, "-p", "x")  # not signed
    refused(run, site, "models", "show", folder)
    refused(run, site, "generate", "-m", str(tmp_path / "folder"), "-p", "x")  # by a stranger
    refused(run, site, "generate", "-m", "tiny", "-p", "x")  # its key was trusted by a user
    assert not script.calls
    assert run("models", "list").code == 0
    trust_for_all(tmp_path, site)
    for reference in ("tiny", str(tmp_path / "folder"), "demo"):
        assert run("generate", "-m", reference, "-p", "x", "--method", "target").code == 0
    assert script.calls[0]["bundle"].signer.name == "house"
    opened = [call["bundle"] for call in script.calls if "bundle" in call]
    assert len(opened) == 3 and all(bundle.read_digests for bundle in opened)
    refused(run, site, "generate", "-m", "tiny", "-p", "x", "--verify", "never")
    file = str(tmp_path / "from" / "target.gguf")
    refused(
        run, site, "models", "create", "mine", "--target", file, "--expert", file, "--base", file
    )


def test_a_template_file_is_refused_where_bundles_have_to_be_signed(
    run: Run, script: Script, site: Path, tmp_path: Path
) -> None:
    """It changes what the models read; the built-in ones are the program's own."""
    site.write_text(FORBID)
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }}")
    ask = ("generate", "-p", "x", "--method", "target", "--template")
    refused(run, site, *ask, str(file))
    refused(run, site, "doctor", "--template", str(file))
    assert not script.calls
    assert run(*ask, "chatml").code == 0
    site.unlink()
    assert run(*ask, str(file)).code == 0


def test_a_user_does_not_lift_the_limit(
    run: Run, script: Script, archive: Path, site: Path, tmp_path: Path
) -> None:
    site.write_text(FORBID)
    result = run("models", "trust", str(tmp_path / "house.pub"))
    assert result.code == 0 and f"note: {site} forbids bundles that no key" in result.err
    before = sorted(store.user_folder().parent.rglob("*"))
    result = run("models", "import", str(archive))
    assert (result.code, result.out, result.err.count("\n")) == (3, "", 1)
    assert f"Only keys of the site count: {site} forbids unsigned-bundles" in result.err
    refused(run, site, "models", "import", str(archive), "--key", str(tmp_path / "house.pub"))
    refused(run, site, "models", "import", str(archive), "--allow-unsigned")
    assert sorted(store.user_folder().parent.rglob("*")) == before
    trust_for_all(tmp_path, site)
    assert run("models", "import", str(archive)).code == 0
    assert run("generate", "-m", "tiny", "-p", "x", "--method", "target").code == 0


def test_who_changes_a_manifest_signs_it_anew(run: Run, archive: Path, tmp_path: Path) -> None:
    take(run, archive)
    file = store.user_folder() / "tiny" / "bundle.toml"
    file.write_text(file.read_text() + '\n[card]\nrisks = "It makes things up."\n')
    out, key = str(tmp_path / "again.capt"), str(tmp_path / "house.key")
    assert run("models", "export", "tiny", "-o", out).code == 3
    assert run("models", "export", "tiny", "-o", out, "--key", key).code == 3
    (file.parent / "bundle.sig").unlink()
    assert run("models", "export", "tiny", "-o", out, "--key", key).code == 3
    (file.parent / "bundle.signer").unlink()  # on purpose: from here on the bundle is unsigned
    assert run("models", "export", "tiny", "-o", out, "--key", key).code == 0
