"""An adapter in a bundle: named with its digest, checked like any file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import MANIFEST, SCALE_LIMIT, AdapterFile, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError, UsageError

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


def test_digests_name_the_adapter_and_its_scale(folder: Path) -> None:
    plain, half = load(folder).digests, load(folder, scale="0.5").digests
    assert list(plain) == ["target", "expert", "base", "expert.adapter"]
    assert list(half)[-1] == "expert.adapter*0.5"
    assert plain["expert"] == plain["base"] != plain["expert.adapter"] == half["expert.adapter*0.5"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"file": None}, r"models\.expert\.adapter\.file is missing"),
        ({"size": None}, r"models\.expert\.adapter\.size is missing"),
        ({"sha256": None}, r"models\.expert\.adapter\.sha256 is missing"),
        ({"sha256": '"abc"'}, r"adapter\.sha256 must be a SHA-256"),
        ({"file": '"none.gguf"'}, r"adapter\.file names none\.gguf, which is not there"),
        ({"file": '"../lora.gguf"'}, r"adapter\.file must name a file inside"),
        ({"scale": "9"}, r"adapter\.scale must be at (most|least) -?8"),
        ({"scale": "nan"}, r"adapter\.scale must be at (most|least) -?8"),
        ({"scale": '"1"'}, r"adapter\.scale must be a number"),
        ({"rank": "4"}, r"adapter\.rank is not known"),
    ],
)
def test_bad_adapters(folder: Path, changes: dict[str, str | None], problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        load(folder, **changes)
    assert str(caught.value).startswith(str(folder / MANIFEST))


def test_an_adapter_is_a_table(folder: Path) -> None:
    text = HEAD + model(folder, "target", "target") + 'adapter = "lora.gguf"\n'
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ModelError, match=r"models\.target\.adapter must be a table"):
        read_bundle(folder)


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


def test_files_given_one_by_one(folder: Path) -> None:
    target, base, lora = (folder / f"{name}.gguf" for name in ("target", "base", "lora"))
    bundle = Bundle.from_paths(target, base=base, expert_adapter=str(lora))
    assert {role: model.path for role, model in bundle.models.items()} == {
        "target": target, "expert": base, "base": base
    }  # fmt: skip
    assert bundle.adapters == {"expert": AdapterFile(lora, len(LORA))}
    assert bundle.digests["expert.adapter"] is None
    half = AdapterFile.given(lora, 0.5)
    bundle = Bundle.from_paths(target, [target, base], [base, base], [lora, half])
    assert bundle.models["expert"].path == target
    assert [one.scale for one in bundle.adapters.values()] == [1.0, 0.5]
    assert list(bundle.adapters) == ["expert", "expert-2"]
    with pytest.raises(UsageError, match="without the base"):
        Bundle.from_paths(target, expert_adapter=lora)
    with pytest.raises(UsageError, match=r"The adapters given are 1, the experts 2"):
        Bundle.from_paths(target, None, [base, base], lora)
    with pytest.raises(ModelError, match=r"The adapter none\.gguf is not there"):
        Bundle.from_paths(target, None, base, folder / "none.gguf")


def test_an_adapter_as_text(folder: Path) -> None:
    path = folder / "lora.gguf"
    assert AdapterFile.parse(str(path)) == AdapterFile.given(path)
    assert AdapterFile.parse(f"{path}=-0.5").scale == -0.5
    odd = folder / "a=2"
    odd.write_bytes(LORA)
    assert AdapterFile.parse(str(odd)) == AdapterFile.given(odd)
    assert AdapterFile.parse(f"{odd}=2") == AdapterFile.given(odd, 2)
    with pytest.raises(UsageError, match="FILE=SCALE"):
        AdapterFile.parse(f"{path}=strong")
    for scale in ("nan", "inf", str(SCALE_LIMIT + 1)):
        with pytest.raises(UsageError, match="a number from -8 to 8"):
            AdapterFile.parse(f"{path}={scale}")
