"""A file that is swapped or cut off between its check and its loading is refused."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import Bundle, read_bundle
from capt_local.bundles.verify import verify
from capt_local.errors import ModelError
from capt_local.llama import weights
from capt_local.llama.gguf_header import file_digests
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.llama.weights import LockedFile, Weights
from capt_local.strict_json import stamp_of
from tests.bundle_files import describe
from tests.tiny_models import tiny_gguf

CHANGED = "changed between its check and its loading"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    file = tiny_gguf(tmp_path / "target.gguf", seed=1)
    models = {"target": describe("target", file)}
    return read_bundle(write_manifest(Bundle(id="one", models=models), tmp_path))


def swap(path: Path) -> None:
    """Another file of that name, with the times of the first."""
    before, other = path.stat(), path.with_name("other")
    tiny_gguf(other, seed=2)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [swap, truncate, overwrite, os.unlink])
def test_a_change_before_loading(bundle: Bundle, change: object) -> None:
    path = bundle.models["target"].path
    stamps = verify(bundle).stamps
    with Weights(path, stamps=stamps) as loaded:
        assert loaded.metadata.layers
    change(path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=rf"target\.gguf( {CHANGED}|: there is no such)"):
        Weights(path, stamps=stamps)


@pytest.mark.parametrize("change", [swap, overwrite])
@pytest.mark.parametrize("by_name", [False, True], ids=["by its handle", "by its name"])
def test_a_change_while_loading(
    bundle: Bundle, change: object, by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle.models["target"].path
    if by_name:
        monkeypatch.setattr(weights, "_HANDLES", Path("/no/such/folder"))
    opened = weights.read_header
    headers = []

    def header(*arguments: object, **more: object) -> object:
        headers.append(opened(*arguments, **more))
        change(path)  # type: ignore[operator]
        return headers[0]

    monkeypatch.setattr(weights, "read_header", header)
    stamps = verify(bundle).stamps
    with pytest.raises(ModelError, match=rf"target\.gguf {CHANGED}"):
        Weights(path, stamps=stamps)


def test_weights_that_are_loaded_do_not_follow_their_file(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "target.gguf", seed=1)
    with LlamaModel.open(path, LoadOptions(threads=1)) as model:
        before = model.extend([3, 4, 5]).copy()
        model.rewind(0)
        path.write_bytes(bytes(path.stat().st_size))
        os.truncate(path, 64)
        assert np.array_equal(model.extend([3, 4, 5]), before)


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="files by their handles are Linux's")


@LINUX
@pytest.mark.parametrize("mode", [0o666, 0o660])
def test_a_write_through_a_mapping_changes_no_time_and_is_found(bundle: Bundle, mode: int) -> None:
    path = bundle.models["target"].path
    path.chmod(mode)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[-4:] = mapping[-4:]  # its page is dirty from here on
        stamps = verify(bundle).stamps
        Weights(path, stamps=stamps).close()
        mapping[-4:] = b"\0\0\0\1"
        assert stamp_of(path.stat()) == stamps[path]
        with pytest.raises(ModelError, match=rf"target\.gguf {CHANGED}"):
            Weights(path, stamps=stamps)


@LINUX
def test_what_others_may_write_is_loaded_from_a_private_copy(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "target.gguf", seed=1)
    before = path.read_bytes()
    with LockedFile(path) as file:
        assert file.sha256 is None
    path.chmod(0o666)
    with LockedFile(path) as file:
        overwrite(path)
        file.check()
        assert file.place.read_bytes() == before
        assert file.sha256 == hashlib.sha256(before).hexdigest()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs another account")
def test_a_handle_can_be_opened_also_where_the_process_is_private(tmp_path: Path) -> None:
    """Without rights over itself, as `keep_memory_private` leaves a process."""
    file = tmp_path / "file"
    file.write_text("content")
    file.chmod(0o644)
    code = (
        "import os, resource, sys\n"
        "from capt_local.hardening import keep_memory_private\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.setuid(65534)\n"
        "keep_memory_private()\n"
        "print(open(f'/proc/self/fd/{handle}').read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "content\n"


def test_digests_of_tokenizers(tmp_path: Path) -> None:
    one = file_digests(tiny_gguf(tmp_path / "a.gguf", seed=1))
    assert file_digests(tiny_gguf(tmp_path / "b.gguf", seed=2)) == one
    other = file_digests(tiny_gguf(tmp_path / "c.gguf", seed=1, template="{{ 1 }}"))
    assert other.tokenizer == one.tokenizer and other.template != one.template
    assert file_digests(tiny_gguf(tmp_path / "d.gguf", seed=1, template=None)).template is None
    spm = file_digests(tiny_gguf(tmp_path / "e.gguf", seed=1, flavour="spm"))
    assert spm.tokenizer != one.tokenizer
