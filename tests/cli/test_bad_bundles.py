"""Bad bundles on a stick: one clear line, exit code 3, and the store is what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from capt_local.bundles import store
from capt_local.bundles.archive import END, header, padding
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import MANIFEST, SIGNATURE, Bundle
from capt_local.bundles.sign import read_private, sign
from tests.bundle_files import describe
from tests.bundles.travelling import everything
from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf

SEEDS = {"target": 1, "expert": 2, "base": 3}


class Stick:
    """A signed bundle as a folder, and ways to spoil it."""

    def __init__(self, folder: Path, key: Path) -> None:
        self.folder = folder
        self._key = key
        folder.mkdir()
        models = {
            role: describe(role, tiny_gguf(folder / f"{role}.gguf", seed=seed))
            for role, seed in SEEDS.items()
        }
        write_manifest(Bundle(id="tiny", models=models, version="2"), folder)
        self.sign()

    def sign(self) -> None:
        manifest = (self.folder / MANIFEST).read_bytes()
        (self.folder / SIGNATURE).write_bytes(sign(manifest, read_private(self._key)))

    def change(self, old: str, new: str) -> None:
        """Another manifest, signed by the same hand."""
        text = (self.folder / MANIFEST).read_text()
        assert old in text
        (self.folder / MANIFEST).write_text(text.replace(old, new))
        self.sign()

    def archive(self) -> Path:
        """The folder as an archive, whatever it holds."""
        names = [MANIFEST, SIGNATURE, *(f"{role}.gguf" for role in SEEDS), "more.gguf"]
        found = {n: (self.folder / n).read_bytes() for n in names if (self.folder / n).exists()}
        parts = [header(n, len(data)) + data + padding(len(data)) for n, data in found.items()]
        path = self.folder.with_suffix(".capt")
        path.write_bytes(b"".join(parts) + END)
        return path

    def size(self, role: str) -> int:
        return (self.folder / f"{role}.gguf").stat().st_size


@pytest.fixture
def stick(run: Run, tmp_path: Path) -> Stick:
    assert run("models", "keygen", "-o", str(tmp_path / "house")).code == 0
    assert run("models", "trust", str(tmp_path / "house.pub")).code == 0
    return Stick(tmp_path / "stick", tmp_path / "house.key")


def a_missing_file(stick: Stick) -> None:
    (stick.folder / "base.gguf").unlink()


def swapped_roles(stick: Stick) -> None:
    folder = stick.folder
    os.rename(folder / "expert.gguf", folder / "x")
    os.rename(folder / "base.gguf", folder / "expert.gguf")
    os.rename(folder / "x", folder / "base.gguf")
    assert stick.size("expert") == stick.size("base")


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
    before = everything(store.user_folder()) if store.user_folder().exists() else {}
    spoil(stick)
    result = run("models", "import", str(stick.archive()))
    assert (result.code, result.out, result.err.count("\n")) == (3, "", 1), result
    assert says in result.err
    after = everything(store.user_folder()) if store.user_folder().exists() else {}
    assert after == before


@pytest.mark.parametrize("spoil", [swapped_roles, a_wrong_size, a_newer_program])
def test_an_installed_bundle_that_is_spoilt_answers_nothing(
    spoil: Callable[[Stick], None], stick: Stick, run: Run
) -> None:
    spoil(stick)
    for verb in (["generate", "-p", "x", "-t", "1", "-m"], ["models", "verify"]):
        result = run(*verb, str(stick.folder))
        assert (result.code, result.out, result.err.count("\n")) == (3, "", 1), result
