"""Bundles on a stick, their signatures and stores, with files that llama.cpp really loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import capt_local.model_checks  # noqa: F401  before a fake stands in the place of its package
from capt_local.bundles import store
from capt_local.bundles.archive import END, header, padding
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import MANIFEST, SIGNATURE, Bundle, Signer
from capt_local.bundles.sign import read_private, sign
from capt_local.config import MODELS_VARIABLE
from capt_local.provenance import about_bundle
from tests.bundle_files import describe
from tests.bundles.travelling import everything, installed
from tests.cli.conftest import Result, Run, one_model
from tests.cli.fake_runtime import Script
from tests.tiny_models import tiny_gguf

FORBID = "[limits]\nunsigned-bundles = false\n"
TARGET = ("-p", "x", "--method", "target")


@pytest.fixture
def key(run: Run, tmp_path: Path) -> str:
    """A pair of keys, without their ending."""
    assert run("models", "keygen", "-o", str(tmp_path / "house")).code == 0
    return str(tmp_path / "house")


@pytest.fixture
def archive(run: Run, tmp_path: Path, key: str) -> str:
    """A bundle on a stick, signed; the unsigned folder that it was made of stays beside it."""
    folder, place = one_model(tmp_path / "from"), str(tmp_path / "tiny.capt")
    assert run("models", "export", str(folder), "-o", place).code == 2
    made = run("models", "export", str(folder), "-o", place, "--key", f"{key}.key")
    assert (made.code, made.out) == (0, f"tiny 1 is written to {place}.\n")
    return place


def is_refused(result: Result, code: int, *says: str) -> None:
    """One line that says why, and nothing else."""
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1), result
    assert all(each in result.err for each in says), result.err


def take(run: Run, archive: str, key: str) -> None:
    result = run("models", "import", archive, "--key", f"{key}.pub")
    assert result.code == 0, result.err


def test_from_one_machine_to_another(run: Run, archive: str, key: str) -> None:
    is_refused(result := run("models", "import", archive), 3, "not trusted here (")
    fingerprint = run("models", "trust", f"{key}.pub").out.split()[-1]
    assert f"({fingerprint})" in result.err
    result = run("models", "import", archive)
    assert (result.code, result.err) == (0, "")
    assert f"tiny 1 is installed: signed by house ({fingerprint})" in result.out
    assert run("models", "verify", "tiny").code == 0
    assert "was installed already" in run("models", "import", archive).out
    result = run("models", "trust", "--remove", "house")
    assert (result.code, fingerprint in result.out) == (0, True)
    assert "its bundles are still installed: tiny" in result.err
    assert f"not trusted here ({fingerprint})" in run("models", "verify", "tiny").err
    assert run("models", "import", archive).code == 3
    assert run("models", "trust", "--remove", "house").code == 3
    assert run("models", "trust").code == 2


def test_a_weight_that_is_no_number_is_found_at_import(run: Run, tmp_path: Path) -> None:
    folder, archive = one_model(tmp_path / "from", nan=True), str(tmp_path / "tiny.capt")
    run("models", "export", str(folder), "-o", archive, "--unsigned")
    is_refused(run("models", "import", archive, "--allow-unsigned"), 3, "target.gguf is damaged")
    assert not (store.user_folder() / "tiny").exists()


# Who has signed is told everywhere, and a site can forbid what its own keys have not signed.


def test_the_signer_is_told(
    run: Run, script: Script, archive: str, key: str, tmp_path: Path
) -> None:
    for verb in (("models", "show"), ("doctor", "-m")):
        shown = run(*verb, str(tmp_path / "from"))
        assert "unsigned" in shown.out and "nobody trusted" not in shown.out, verb
    signer = {"key": run("models", "trust", f"{key}.pub").out.split()[-1], "name": "house"}
    assert run("models", "import", archive).code == 0
    told = json.loads(run("models", "list", "--json").out)["bundles"]
    assert {each["id"]: each["signer"] for each in told} == {"demo": None, "tiny": signer}
    assert "house" in run("models", "list").out
    shown = json.loads(run("models", "show", "tiny", "--json").out)["bundle"]
    assert shown["signer"] == signer and len(shown["manifest_sha256"]) == 64
    by = f"house ({signer['key']})"
    assert by in " ".join(run("models", "show", "tiny").out.split())
    assert f"signed by {by}" in run("models", "verify", "tiny").out
    about = json.loads(run("generate", "-m", "tiny", *TARGET, "--json").out)["provenance"]["bundle"]
    bundle = script.calls[0]["bundle"]
    assert bundle.signer == Signer(**signer)
    assert about == about_bundle(bundle)
    assert (about["signer"], about["manifest_sha256"]) == (signer, bundle.manifest_sha256)


@pytest.mark.parametrize("change", ["manifest", "gone", "empty"])
def test_a_manifest_that_no_longer_fits_its_signature(
    change: str, run: Run, script: Script, archive: str, key: str
) -> None:
    take(run, archive, key)
    folder, says = store.user_folder() / "tiny", "was imported with a signature"
    if change == "manifest":
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace('version = "1"', 'version = "9"'))
        says = "The signature does not fit the manifest"
    else:
        (folder / SIGNATURE).unlink()
        (folder / SIGNATURE).write_bytes(b"") if change == "empty" else None
    for verb in (["generate", "-p", "x", "-m"], ["models", "show"], ["models", "verify"]):
        is_refused(run(*verb, "tiny"), 3, says)
    result = run("doctor", "-m", "tiny")
    assert result.code == 3 and says in " ".join(result.out.split())
    listed = run("models", "list")
    assert listed.code == 3 and "tiny" not in listed.out and says in listed.err
    assert not script.calls
    if change != "manifest":
        take(run, archive, key)  # the same version mends it
        assert run("models", "verify", "tiny").code == 0


def test_a_site_forbids_what_nobody_has_signed(
    run: Run, script: Script, archive: str, key: str, site: Path, tmp_path: Path
) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    folder, signed, file = (str(tmp_path / n) for n in ("from", "folder", "from/target.gguf"))
    take(run, archive, key)
    site.write_text(FORBID)
    rule = (2, str(site), "unsigned-bundles")
    is_refused(run("generate", "{models}", "-p", "x"), *rule)  # files given by their paths
    is_refused(run("generate", "-m", folder, "-p", "x"), *rule)  # not signed
    is_refused(run("models", "show", folder), *rule)
    is_refused(run("generate", "-m", signed, "-p", "x"), *rule)  # by a stranger
    is_refused(run("generate", "-m", "tiny", "-p", "x"), *rule)  # its key was trusted by a user
    models = ("--target", file, "--expert", file, "--base", file)
    is_refused(run("models", "create", "mine", *models), *rule)
    assert not script.calls
    assert run("models", "list").code == 0
    # The administrator installs the key.
    (site.parent / "keys").mkdir()
    shutil.copy(f"{key}.pub", site.parent / "keys")
    for reference in ("tiny", signed, "demo"):
        assert run("generate", "-m", reference, *TARGET).code == 0
    assert script.calls[0]["bundle"].signer.name == "house"
    opened = [call["bundle"] for call in script.calls if "bundle" in call]
    assert len(opened) == 3 and all(bundle.always_hash for bundle in opened)
    is_refused(run("generate", "-m", "tiny", "-p", "x", "--verify", "never"), *rule)


def test_a_template_file_is_refused_where_bundles_have_to_be_signed(
    run: Run, script: Script, site: Path, tmp_path: Path
) -> None:
    """It changes what the models read; the built-in ones are the program's own."""
    site.write_text(FORBID)
    (file := tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    for verb in (("generate", *TARGET), ("doctor",)):
        is_refused(run(*verb, "--template", str(file)), 2, str(site), "unsigned-bundles")
    assert not script.calls
    assert run("generate", *TARGET, "--template", "chatml").code == 0
    site.unlink()
    assert run("generate", *TARGET, "--template", str(file)).code == 0


def test_a_user_does_not_lift_the_limit(
    run: Run, script: Script, archive: str, key: str, site: Path
) -> None:
    site.write_text(FORBID)
    result = run("models", "trust", f"{key}.pub")
    assert result.code == 0 and f"note: {site} forbids bundles that no key" in result.err
    before = sorted(store.user_folder().parent.rglob("*"))
    says = f"Only keys of the site count: {site} forbids unsigned-bundles"
    is_refused(run("models", "import", archive), 3, says)
    for more in (["--key", f"{key}.pub"], ["--allow-unsigned"]):
        is_refused(run("models", "import", archive, *more), 2, str(site), "unsigned-bundles")
    assert sorted(store.user_folder().parent.rglob("*")) == before
    (site.parent / "keys").mkdir()
    shutil.copy(f"{key}.pub", site.parent / "keys")
    assert run("models", "import", archive).code == 0
    assert run("generate", "-m", "tiny", *TARGET).code == 0


def test_who_changes_a_manifest_signs_it_anew(
    run: Run, archive: str, key: str, tmp_path: Path
) -> None:
    take(run, archive, key)
    file = store.user_folder() / "tiny" / MANIFEST
    file.write_text(file.read_text() + '\n[card]\nrisks = "It makes things up."\n')
    again = ("models", "export", "tiny", "-o", str(tmp_path / "again.capt"))
    anew = (*again, "--key", f"{key}.key")
    assert run(*again).code == run(*anew).code == 3
    (file.parent / SIGNATURE).unlink()
    assert run(*anew).code == 3
    (file.parent / "bundle.signer").unlink()  # on purpose: from here on the bundle is unsigned
    assert run(*anew).code == 0


# Bad bundles: one clear line, exit code 3, and the store is what it was.

SEEDS = {"target": 1, "expert": 2, "base": 3}


class Stick:
    """A signed bundle as a folder, and ways to spoil it."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._key = read_private(Path(f"{key}.key"))
        folder.mkdir()
        files = {
            role: tiny_gguf(folder / f"{role}.gguf", seed=seed) for role, seed in SEEDS.items()
        }
        models = {role: describe(role, file) for role, file in files.items()}
        write_manifest(Bundle(id="tiny", models=models, version="2"), folder)
        self.change("", "")

    def change(self, old: str, new: str) -> None:
        """Another manifest, signed by the same hand."""
        text = (self.folder / MANIFEST).read_text()
        assert old in text
        (self.folder / MANIFEST).write_text(text.replace(old, new) if old else text)
        manifest = (self.folder / MANIFEST).read_bytes()
        (self.folder / SIGNATURE).write_bytes(sign(manifest, self._key))

    def archive(self) -> str:
        """The folder as an archive, whatever it holds."""
        names = [MANIFEST, SIGNATURE, *(f"{role}.gguf" for role in SEEDS)]
        found = {n: (self.folder / n).read_bytes() for n in names if (self.folder / n).exists()}
        parts = [header(n, len(data)) + data + padding(len(data)) for n, data in found.items()]
        path = self.folder.with_suffix(".capt")
        path.write_bytes(b"".join(parts) + END)
        return str(path)


@pytest.fixture
def stick(run: Run, tmp_path: Path, key: str) -> Stick:
    assert run("models", "trust", f"{key}.pub").code == 0
    return Stick(tmp_path / "stick", key)


def a_missing_file(stick: Stick) -> None:
    (stick.folder / "base.gguf").unlink()


def swapped_roles(stick: Stick) -> None:
    expert, base = (stick.folder / f"{role}.gguf" for role in ("expert", "base"))
    assert expert.stat().st_size == base.stat().st_size
    was = expert.read_bytes()
    expert.write_bytes(base.read_bytes())
    base.write_bytes(was)


def the_same_model_twice(stick: Stick) -> None:
    text = (stick.folder / MANIFEST).read_text()
    digests = [line for line in text.splitlines() if line.startswith("sha256")]
    stick.change(digests[2], digests[1])
    shutil.copy(stick.folder / "expert.gguf", stick.folder / "base.gguf")


def the_same_file_twice(stick: Stick) -> None:
    the_same_model_twice(stick)
    stick.change('"base.gguf"', '"expert.gguf"')
    (stick.folder / "base.gguf").unlink()


def a_wrong_size(stick: Stick) -> None:
    with (stick.folder / "base.gguf").open("ab") as file:
        file.write(b"x")


def a_newer_program(stick: Stick) -> None:
    stick.change('version = "2"', 'version = "2"\nrequires = "99.0"\nof_tomorrow = 1')


def another_tokenizer(stick: Stick) -> None:
    stick.change("[models.base]", f'[models.base]\ntokenizer_sha256 = "{"0" * 64}"')


def another_template(stick: Stick) -> None:
    stick.change("[models.base]", f'[models.base]\ntemplate_sha256 = "{"0" * 64}"')


BAD: list[tuple[Callable[[Stick], None], str]] = [
    (a_missing_file, "where base.gguf should be there is another file"),
    (swapped_roles, "expert.gguf is not the file that the manifest names: its SHA-256 differs"),
    (the_same_model_twice, "The expert and its base are the same model"),
    (the_same_file_twice, "The expert and its base are the same model"),
    (a_newer_program, "the bundle tiny was made for a newer capt-local: it needs 99.0"),
    (another_tokenizer, "The tokenizer of the base is not the one that the bundle names"),
    (another_template, "The chat template of the base is not the one that the bundle names"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_a_bad_bundle_is_one_line(
    spoil: Callable[[Stick], None], says: str, stick: Stick, run: Run
) -> None:
    before = installed()
    spoil(stick)
    is_refused(run("models", "import", stick.archive()), 3, says)
    assert installed() == before


@pytest.mark.parametrize("spoil", [swapped_roles, a_wrong_size, a_newer_program])
def test_an_installed_bundle_that_is_spoilt_answers_nothing(
    spoil: Callable[[Stick], None], stick: Stick, run: Run
) -> None:
    spoil(stick)
    for verb in (["generate", "-p", "x", "-t", "1", "-m"], ["models", "verify"]):
        is_refused(run(*verb, str(stick.folder)), 3)


# Stores: folders that files name, a store on a stick, one that cannot be written.


def ids(run: Run) -> list[str]:
    return [each["id"] for each in json.loads(run("models", "list", "--json").out)["bundles"]]


def test_a_file_names_folders_with_bundles(
    run: Run, script: Script, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_model(tmp_path / "one" / "mine", "mine")
    one_model(tmp_path / "two" / "other", "other")
    user.write_text(f"[options]\nmodels = ['{tmp_path}/one', '{tmp_path}/two']\n")
    assert ids(run) == ["demo", "mine", "other"]
    assert run("generate", "-m", "other", "-p", "x").code == 0
    assert script.calls[0]["bundle"].folder == tmp_path / "two" / "other"
    assert MODELS_VARIABLE not in os.environ
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "two"))  # which wins
    assert ids(run) == ["demo", "other"]
    assert os.environ[MODELS_VARIABLE] == str(tmp_path / "two")


def test_a_store_on_a_stick(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sticks often give every file to everybody: it is used and read each time, and told."""
    folder = one_model(tmp_path / "stick" / "mine", "mine")
    for place in (folder, *folder.iterdir()):
        place.chmod(0o777)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "stick"))
    assert run("generate", "-m", "mine", "-p", "x").code == 0
    found = json.loads(run("doctor", "-m", "mine", "--json").out)
    assert found["exit_code"] == 0
    assert found["files"]["writable by others"] == 3  # the folder, the model, the manifest
    assert run("models", "verify", "mine").code == 0


@pytest.fixture
def read_only(run: Run) -> Iterator[Path]:
    """The user's store with a bundle in it, on a disk that cannot be written any more."""
    place = store.user_folder().parent
    place.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", "size=9m,mode=700", "tmpfs", str(place)]
    try:
        done = subprocess.run(mounted, capture_output=True)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a disk can be mounted by root alone")
    try:
        one_model(store.user_folder() / "mine", "mine")
        left = store.staging_folder() / "left"
        left.mkdir(parents=True)
        (left / "target.gguf").write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_cannot_be_written_serves_all_but_changes(
    read_only: Path, run: Run, script: Script, tmp_path: Path
) -> None:
    archive = str(tmp_path / "mine.capt")
    assert ids(run) == ["demo", "mine"]
    for verb in (
        ["models", "show", "mine"], ["models", "verify", "mine"], ["doctor", "-m", "mine"],
        ["generate", "-m", "mine", "-p", "x"],
        ["models", "export", "mine", "-o", archive, "--unsigned"],
    ):  # fmt: skip
        assert run(*verb).code == 0, verb
    before = everything(read_only)
    for verb in (["import", archive, "--allow-unsigned"], ["remove", "mine", "--yes"],
                 ["clean", "--yes"]):  # fmt: skip
        is_refused(run("models", *verb), 3, "Read-only file system")
    assert everything(read_only) == before
