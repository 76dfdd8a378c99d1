"""Bundles with more than one pair of expert and base."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from capt_local.bundles.manifest import MANIFEST, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError

FIVE = ("target", "expert", "base", "expert-2", "base-2")
HEAD = 'schema = 1\nid = "two"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "two"
    place.mkdir()
    for role in FIVE:
        (place / f"{role}.gguf").write_bytes(f"GGUF {role}".encode())
    return place


def table(folder: Path, role: str, file: str) -> str:
    data = (folder / f"{file}.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return f'[models.{role}]\nfile = "{file}.gguf"\nsize = {len(data)}\nsha256 = "{digest}"\n'


def load(folder: Path, *named: str, head: str = HEAD, **shared: str) -> Bundle:
    """A bundle of these roles; `shared` says whose file a role has instead of its own."""
    tables = [table(folder, role, shared.get(role.replace("-", ""), role)) for role in named]
    (folder / MANIFEST).write_text(head + "".join(tables))
    return read_bundle(folder)


def test_models_come_in_the_order_of_their_pairs(folder: Path) -> None:
    bundle = load(folder, *reversed(FIVE))
    assert tuple(bundle.models) == FIVE
    assert [model.role for model in bundle.models.values()] == list(FIVE)
    assert bundle.pairs == 2
    verify(bundle)


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (FIVE[:4], r"models\.base-2 is missing; a bundle has both expert-2 and base-2, or neither"),
        (("target", "base-2", "expert", "base"), r"models\.expert-2 is missing; .* both expert-2"),
        (("target", "expert-2", "base-2"), r"models\.expert is missing; .* without a gap"),
        ((*FIVE[:3], "expert-3", "base-3"), r"models\.expert-2 is missing; .* without a gap"),
        ((*FIVE, "expert-12", "base-12"), r"models\.expert-3 is missing; .* without a gap"),
        ((*FIVE[:3], "expert-1", "base-1"), r"models\.roles are .* expert-2, base-2, \.\.\. "),
        ((*FIVE[:3], "expert-02", "base-02"), r"models\.roles are"),
        ((*FIVE[:3], "expert-100", "base-100"), r"models\.roles are"),
        ((*FIVE[:3], "target-2"), r"models\.roles are"),
    ],
)
def test_bad_pairs(folder: Path, named: tuple[str, ...], problem: str) -> None:
    for role in named:
        (folder / f"{role}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=problem) as caught:
        load(folder, *named)
    assert str(caught.value).startswith(str(folder / MANIFEST))


def test_pairs_may_share_a_base(folder: Path) -> None:
    bundle = load(folder, *FIVE, base2="base")
    assert bundle.models["base"].path == bundle.models["base-2"].path
    read: list[str] = []
    verify(bundle, lambda role, _: read.append(role))
    assert read == ["target", "expert", "base", "expert-2"]


def test_a_shared_file_is_checked_against_both_digests(folder: Path) -> None:
    load(folder, *FIVE, base2="base")
    text = (folder / MANIFEST).read_text()
    head, last = text.rsplit("sha256", 1)
    (folder / MANIFEST).write_text(f'{head}sha256 = "{"0" * 64}"\n')
    assert last
    with pytest.raises(ModelError, match=r"The base-2 model base\.gguf .* its SHA-256 differs"):
        verify(read_bundle(folder))
