"""`models list`, `show`, `verify`, `remove`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local.bundles import store
from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.errors import ModelError
from capt_local.llama.gguf_header import file_digests
from capt_local.model_checks import check_tokenizers
from tests.cli.conftest import Run
from tests.tiny_models import tiny_gguf
from tests.tiny_vocabularies import TEMPLATE


def make(folder: Path, **about: object) -> Path:
    folder.mkdir(parents=True)
    shared = {"target": TEMPLATE, "expert": TEMPLATE, "base": "{{ messages }}"}
    models = {
        role: describe(role, tiny_gguf(folder / f"{role}.gguf", seed=seed, template=template))
        for seed, (role, template) in enumerate(shared.items())
    }
    write_manifest(Bundle(id=folder.name, models=models, **about), folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def bundle() -> Path:
    return make(
        store.user_folder() / "mine",
        version="3",
        licence="CC0",
        review_by="2020-01-01",
        card={"intended_use": "To be tried."},
    )


def test_list(bundle: Path, run: Run) -> None:
    result = run("models", "list")
    assert result.code == 0
    assert "demo" in result.out and "mine" in result.out
    assert "mine was to be reviewed by 2020-01-01" in result.err
    found = json.loads(run("models", "list", "--json").out)
    assert [each["id"] for each in found["bundles"]] == ["demo", "mine"]
    assert found["problems"] == []


def test_list_tells_broken_bundles_and_goes_on(bundle: Path, run: Run) -> None:
    (bundle / "base.gguf").unlink()
    result = run("models", "list")
    assert result.code == 3
    assert "demo" in result.out and "mine" not in result.out
    assert "error:" in result.err and "names base.gguf, which is not there" in result.err
    assert len(json.loads(run("models", "list", "--json").out)["problems"]) == 1


def test_show(bundle: Path, run: Run) -> None:
    result = run("models", "show", "mine")
    assert result.code == 0
    for part in ("llama", "F32", "CC0", "intended use", "To be tried."):
        assert part in result.out
    assert "reviewed by 2020-01-01, which is past" in result.err


def test_show_as_json(bundle: Path, run: Run) -> None:
    found = json.loads(run("models", "show", str(bundle), "--json").out)
    assert found["bundle"]["version"] == "3"
    assert list(found["models"]) == ["target", "expert", "base"]
    target = found["models"]["target"]
    assert (target["architecture"], target["quantization"]) == ("llama", "all F32")
    assert target["tokenizer_sha256"] == file_digests(bundle / "target.gguf").tokenizer
    assert found["fit"]["expert"] == {
        "base": "base",
        "same_vocabulary": True,
        "same_tokenizer": True,
        "same_template": False,
        "same_quantization": True,
        "overlap": 1.0,
    }
    assert found["card"]["intended_use"] == "To be tried."


def spoil(bundle: Path) -> None:
    data = bytearray((bundle / "expert.gguf").read_bytes())
    data[-1] ^= 1
    (bundle / "expert.gguf").write_bytes(data)


def test_verify(bundle: Path, run: Run) -> None:
    result = run("models", "verify", "mine")
    assert (result.code, result.out.startswith("mine is whole: 3 files")) == (0, True)
    assert json.loads(run("models", "verify", "mine", "--json").out)["ok"] is True


@pytest.mark.parametrize("verb", ["verify", "show"])
def test_one_flipped_bit_is_exit_3(verb: str, bundle: Path, run: Run) -> None:
    assert run("models", verb, "mine").code == 0
    spoil(bundle)
    result = run("models", verb, "mine")
    assert (result.code, result.out) == (3, "")
    assert "The expert model expert.gguf is not the file that the bundle names" in result.err
    assert run("models", "show", "mine", "--verify", "never").code == 0


def test_remove_needs_a_yes(bundle: Path, run: Run) -> None:
    result = run("models", "remove", "mine")
    assert (result.code, result.out) == (2, "")
    assert f"nothing is deleted without --yes; with it, {bundle} would go" in result.err
    assert (bundle / MANIFEST).exists()


@pytest.mark.parametrize("reference", ["mine", "{folder}", "{folder}/bundle.toml"])
def test_remove(bundle: Path, run: Run, reference: str) -> None:
    (bundle / MANIFEST).write_text("broken")  # which is no reason to keep it
    result = run("models", "remove", reference.format(folder=bundle), "--yes")
    assert (result.code, result.out) == (0, f"{bundle} is deleted.\n")
    assert not bundle.exists()


@pytest.mark.parametrize("reference", ["demo", "none", "..", ".", "/", "x" * 300, "a\x01b", ""])
def test_remove_only_from_the_users_store(bundle: Path, run: Run, reference: str) -> None:
    result = run("models", "remove", reference, "--yes")
    assert result.code == 3
    assert "Only bundles of the user's own store are deleted" in result.err
    assert (bundle / MANIFEST).exists()


@pytest.mark.parametrize("reference", ["{loop}/x", "{loop}", "~nobody-of-this-name/x", "loop"])
def test_remove_of_what_leads_nowhere(
    bundle: Path, run: Run, reference: str, tmp_path: Path
) -> None:
    for loop in (tmp_path / "loop", store.user_folder() / "loop"):
        loop.symlink_to("loop")
    result = run("models", "remove", reference.format(loop=tmp_path / "loop"), "--yes")
    assert (result.code, result.out) == (3, "")
    assert "Only bundles of the user's own store are deleted" in result.err


def test_a_link_in_the_store_is_not_followed(bundle: Path, run: Run, tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere")
    (store.user_folder() / "elsewhere").symlink_to(elsewhere)
    assert run("models", "remove", "elsewhere", "--yes").code == 3
    assert (elsewhere / MANIFEST).exists()


@pytest.mark.parametrize("verb", ["show", "verify", "remove"])
def test_a_bundle_has_to_be_named(verb: str, run: Run) -> None:
    result = run("models", verb)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_verify_and_no_verify_contradict_each_other(bundle: Path, run: Run) -> None:
    result = run("generate", "-m", "mine", "--verify", "always", "--no-verify", "-p", "x")
    assert (result.code, result.out) == (2, "")
    assert "either --verify or --no-verify" in result.err


def test_another_tokenizer_than_the_manifest_names_is_refused(bundle: Path) -> None:
    import dataclasses

    model = read_bundle(bundle).models["target"]
    check_tokenizers([model])
    right = file_digests(model.path).tokenizer
    check_tokenizers([dataclasses.replace(model, tokenizer_sha256=right)])
    with pytest.raises(ModelError, match="The tokenizer of the target is not the one"):
        check_tokenizers([dataclasses.replace(model, tokenizer_sha256="0" * 64)])
