"""Digests that are known: used only where nobody else can have had a hand in it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from capt_local.bundles import store, verify
from capt_local.bundles.manifest import Bundle
from capt_local.bundles.verify import Check
from capt_local.errors import ModelError
from tests.bundle_files import make_bundle

SIZE = 3_000_000
CONTENT = {"target": b"G" * SIZE}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes are read."""
    found: list[str] = []
    hashed = verify.hashed

    def counted(stream, *more):  # type: ignore[no-untyped-def]
        found.append(Path(stream.name).name)
        return hashed(stream, *more)

    monkeypatch.setattr(verify, "hashed", counted)
    monkeypatch.setattr(verify, "_SETTLED", 0)
    return found


@pytest.fixture
def bundle(reads: list[str]) -> Bundle:
    made = make_bundle(store.user_folder() / "one", CONTENT)
    reads.clear()
    return made


def check(bundle: Bundle) -> None:
    verify.verify(bundle, check=Check.CACHED)


def cache() -> Path:
    return verify.state_folder() / "digests.json"


def test_an_installed_file_is_read_once(bundle: Bundle, reads: list[str]) -> None:
    check(bundle)
    check(bundle)
    assert reads == ["target.gguf"]
    assert cache().stat().st_mode & 0o777 == 0o600
    assert cache().parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(cache().parent) == ["digests.json"]


def test_a_bundle_elsewhere_is_read_each_time(tmp_path: Path, reads: list[str]) -> None:
    elsewhere = make_bundle(tmp_path / "one", CONTENT)
    reads.clear()
    check(elsewhere)
    check(elsewhere)
    assert reads == ["target.gguf"] * 2
    assert not cache().exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_change_is_found_also_where_its_time_is_set_back(replaced: bool, bundle: Bundle) -> None:
    check(bundle)
    path = bundle.models["target"].path
    before, other = path.stat(), path.with_name("other") if replaced else path
    other.write_bytes(b"x" * SIZE)
    os.replace(other, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        check(bundle)


def spoil(how: str, file: Path) -> None:
    real = file.with_name("real")
    if how == "mode":
        file.chmod(0o644)
    elif how == "folder":
        file.parent.chmod(0o777)
    elif how == "hard link":
        os.link(file, real)
    else:
        file.rename(real)
        file.symlink_to(real) if how == "link" else os.mkfifo(file, 0o600)


@pytest.mark.parametrize("how", ["mode", "folder", "link", "hard link", "pipe"])
def test_a_file_of_digests_that_others_may_have_written_is_not_used(
    how: str, bundle: Bundle, reads: list[str]
) -> None:
    check(bundle)
    assert len(json.loads(cache().read_text())) == 1
    spoil(how, cache())
    check(bundle)
    assert reads == ["target.gguf"] * 2


@pytest.mark.parametrize("text", ["", '{"a": 1}', '{"a": "b", "a": "c"}', "\xff", "[" * 100_000])
def test_a_broken_file_of_digests_is_as_none(bundle: Bundle, reads: list[str], text: str) -> None:
    check(bundle)
    cache().write_bytes(text.encode("latin-1"))
    check(bundle)
    assert reads == ["target.gguf"] * 2
    check(bundle)
    assert reads == ["target.gguf"] * 2  # and it is made anew


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_model_that_others_may_write_is_read_each_time(
    bundle: Bundle, reads: list[str], place: str
) -> None:
    path = bundle.models["target"].path
    (path if place == "file" else path.parent).chmod(0o770)
    check(bundle)
    check(bundle)
    assert reads == ["target.gguf"] * 2


def test_a_file_that_changes_while_it_is_read_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle.models["target"].path
    once: list[float] = []

    def change(role: str, part: float) -> None:
        if not once:
            once.append(part)
            with path.open("r+b") as file:
                file.write(b"G")  # the same bytes: only the time tells

    with pytest.raises(ModelError, match="changed while it was read"):
        verify.verify(bundle, change)


def test_a_rule_of_the_site_reads_whatever_the_cache_says(bundle: Bundle, reads: list[str]) -> None:
    check(bundle)
    reads.clear()
    file = bundle.models["target"].path
    file.write_bytes(b"H" * SIZE)  # another model, and a cache that vouches for it
    entry = json.loads(cache().read_text())
    stamp = verify.stamp_of(os.stat(file))
    entry[verify._key(file, stamp, "")] = bundle.models["target"].sha256
    cache().write_text(json.dumps(entry))
    found = verify.verify(bundle, check=Check.CACHED)
    assert (reads, found.how[file]) == ([], verify.Verified.CACHED)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        verify.verify(replace(bundle, always_hash=True), check=Check.CACHED)
    assert reads == ["target.gguf"]


def test_digests_beside_the_load_are_of_what_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" * 1000)
    model = Bundle.from_paths(file).models["target"]
    stamps = {file: verify.stamp_of(file.stat())}
    assert verify.BackgroundDigests([model]).of(model) == hashlib.sha256(b"GGUF" * 1000).hexdigest()
    file.write_bytes(b"another")
    assert verify.BackgroundDigests([model], stamps).of(model) is None
    copied = {file: stamps[file].with_digest("0" * 64)}
    assert verify.BackgroundDigests([model], copied).of(model) == "0" * 64
