"""An adapter in a bundle: named with its digest, checked like any file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import MANIFEST, AdapterFile, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError

HEAD = 'schema = 1\nid = "lora"\n'
LORA = b"GGUF adapter"
KEYS = {
    "file": '"lora.gguf"',
    "size": str(len(LORA)),
    "sha256": f'"{hashlib.sha256(LORA).hexdigest()}"',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("target", "base"):
        (tmp_path / f"{name}.gguf").write_bytes(f"GGUF {name}".encode())
    (tmp_path / "lora.gguf").write_bytes(LORA)
    return tmp_path


def model(folder: Path, role: str, file: str) -> str:
    data = (folder / f"{file}.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return f'[models.{role}]\nfile = "{file}.gguf"\nsize = {len(data)}\nsha256 = "{digest}"\n'


def load(folder: Path, **changes: str | None) -> Bundle:
    """A bundle whose expert is its base with an adapter; a change of None leaves a key out."""
    lines = [f"{key} = {value}\n" for key, value in (KEYS | changes).items() if value is not None]
    models = [model(folder, "target", "target"), model(folder, "base", "base")]
    adapted = model(folder, "expert", "base") + "[models.expert.adapter]\n" + "".join(lines)
    (folder / MANIFEST).write_text(HEAD + "".join(models) + adapted)
    return read_bundle(folder)


def test_an_expert_may_be_its_base_with_an_adapter(folder: Path) -> None:
    bundle = load(folder, scale="0.5", licence='"L"', source='"here"')
    expert, base = bundle.models["expert"], bundle.models["base"]
    assert expert.path == base.path and base.adapter is None
    digest = hashlib.sha256(LORA).hexdigest()
    found = AdapterFile(folder / "lora.gguf", len(LORA), digest, 0.5, "L", "here")
    assert expert.adapter == found
    assert bundle.adapters == {"expert": found}
    assert str(found) == "adapter lora.gguf x 0.5"
    read: list[str] = []
    verify(bundle, lambda role, _: read.append(role))
    assert read == ["target", "expert", "expert"]  # the base's file and the adapter; once each


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"file": None}, r"models\.expert\.adapter\.file is missing"),
        ({"sha256": '"abc"'}, r"adapter\.sha256 must be a SHA-256"),
        ({"file": '"../lora.gguf"'}, r"adapter\.file must name a file inside"),
        ({"scale": "9"}, r"adapter\.scale must be at (most|least) -?8"),
        ({"scale": "nan"}, r"adapter\.scale must be at (most|least) -?8"),
        ({"rank": "4"}, r"adapter\.rank is not known"),
    ],
)
def test_bad_adapters(folder: Path, changes: dict[str, str | None], problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        load(folder, **changes)
    assert str(caught.value).startswith(str(folder / MANIFEST))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (LORA[:-1] + b"x", "its SHA-256 differs"),
        (LORA + b"x", "it has 13 bytes instead of 12"),
        (None, "No such file"),
    ],
)
def test_another_adapter_is_found(folder: Path, data: bytes | None, why: str) -> None:
    bundle = load(folder)
    if data is None:
        (folder / "lora.gguf").unlink()
    else:
        (folder / "lora.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=rf"The expert's adapter lora\.gguf is not .*{why}"):
        verify(bundle)


def test_what_is_written_reads_back(folder: Path) -> None:
    lora = AdapterFile.given(folder / "lora.gguf", 0.25)
    models = {
        "target": describe("target", folder / "target.gguf"),
        "expert": describe("expert", folder / "base.gguf", adapter=replace(lora, licence="L")),
        "base": describe("base", folder / "base.gguf"),
    }
    again = read_bundle(write_manifest(Bundle(id="lora", models=models), folder))
    assert again.models == models
    assert again.adapters["expert"].sha256 == hashlib.sha256(LORA).hexdigest()
    verify(again)
    models["expert"] = replace(models["expert"], adapter=lora)
    with pytest.raises(ModelError, match="The expert's adapter has no digest"):
        write_manifest(Bundle(id="lora", models=models), folder)
