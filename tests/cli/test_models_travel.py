"""`models keygen`, `trust`, `export`, `import` with files that llama.cpp really loads."""

from __future__ import annotations

from pathlib import Path

from capt_local.bundles import store
from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle
from tests.bundle_files import describe
from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf


def make(folder: Path, *, nan: bool = False) -> Path:
    folder.mkdir(parents=True)
    file = tiny_gguf(folder / "target.gguf", seed=1, nan=nan)
    name = "demo" if folder.name == "demo" else "tiny"
    write_manifest(Bundle(id=name, models={"target": describe("target", file)}), folder)
    return folder


def test_from_one_machine_to_another(run: Run, tmp_path: Path) -> None:
    folder, archive, keys = (
        make(tmp_path / "from"),
        str(tmp_path / "tiny.capt"),
        str(tmp_path / "k"),
    )
    assert run("models", "export", str(folder), "-o", archive).code == 2
    made = run("models", "keygen", "-o", keys)
    assert made.code == 0
    fingerprint = made.out.split()[-1]
    made = run("models", "export", str(folder), "-o", archive, "--key", f"{keys}.key")
    assert (made.code, made.out) == (0, f"tiny is written to {archive}.\n")
    result = run("models", "import", archive)
    assert (result.code, result.out) == (3, "")
    assert f"not trusted here ({fingerprint})" in result.err
    result = run("models", "trust", f"{keys}.pub")
    assert (result.code, fingerprint in result.out) == (0, True)
    result = run("models", "import", archive)
    assert (result.code, result.err) == (0, "")
    assert f"tiny is installed: signed by k ({fingerprint})" in result.out
    assert run("models", "verify", "tiny").code == 0
    assert "was installed already" in run("models", "import", archive).out
    result = run("models", "trust", "--remove", "k")
    assert (result.code, fingerprint in result.out) == (0, True)
    assert "its bundles are still installed: tiny" in result.err
    assert f"not trusted here ({fingerprint})" in run("models", "verify", "tiny").err
    assert run("models", "import", archive).code == 3
    assert run("models", "trust", "--remove", "k").code == 3
    assert run("models", "trust").code == 2


def test_a_weight_that_is_no_number_is_found_at_import(run: Run, tmp_path: Path) -> None:
    archive = str(tmp_path / "tiny.capt")
    run("models", "export", str(make(tmp_path / "from", nan=True)), "-o", archive, "--unsigned")
    result = run("models", "import", archive, "--allow-unsigned")
    assert (result.code, result.out) == (3, "")
    assert "target.gguf is damaged" in result.err
    assert not (store.user_folder() / "tiny").exists()
