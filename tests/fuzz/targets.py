"""What is fuzzed: readers of files that come from elsewhere. Each takes bytes, and must know them
or refuse them by an error of its own; any other exception is a fault.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from capt_local.batch.readers import check_input
from capt_local.bundles import store
from capt_local.bundles.install import import_bundle
from capt_local.bundles.manifest import parse_manifest
from capt_local.errors import ModelError, UsageError
from capt_local.llama.gguf_header import parse_header
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import estimate
from capt_local.strict_json import ParseError, parse_json

CORPUS = Path(__file__).resolve().parent / "corpus"
Target = Callable[[bytes], bool]


def header(data: bytes) -> bool:
    """The header of a GGUF file, and what is computed of it before it is loaded."""
    try:
        found = parse_header(io.BytesIO(data), "fuzz.gguf", len(data))
    except ModelError as error:
        assert str(error).startswith("fuzz.gguf") and str(error).isprintable()
        return False
    estimate(found, LoadOptions())
    assert sum(one.size for one in found.tensors) <= len(data)
    return True


def archive(data: bytes) -> bool:
    """An archive of a bundle, as `models import` takes it in; the user's store is `place()`."""
    path = place() / "fuzz.capt"
    path.write_bytes(data)
    try:
        import_bundle(path, {}, lambda _: None, unsigned=True, older=True)
    except ModelError as error:
        assert str(error).count("\n") == 0
        return False
    finally:
        assert {each.name for each in place().iterdir()} <= {"fuzz.capt", "capt-local"}
    return True


def manifest(data: bytes) -> bool:
    """The manifest of a bundle."""
    try:
        parse_manifest(data, Path("bundle.toml"), present=False)
    except ModelError:
        return False
    return True


def lines(data: bytes) -> bool:
    """The input of a batch as lines of JSON."""
    return _records(data, "input.jsonl")


def table(data: bytes) -> bool:
    """The input of a batch as a table."""
    return _records(data, "input.csv")


def value(data: bytes) -> bool:
    """One value of strict JSON; what is taken, Python's own reader takes too."""
    try:
        found = parse_json(data)
    except ParseError:
        return False
    json.dumps(found, allow_nan=False).encode()
    assert found == json.loads(data.decode())
    return True


TARGETS: dict[str, Target] = {
    each.__name__: each for each in (header, archive, manifest, lines, table, value)
}


def place() -> Path:
    """The folder of this process for files; it is also where the user's store is."""
    found = Path(tempfile.gettempdir()) / f"capt-local-fuzz-{os.getpid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    assert store.user_folder().is_relative_to(found), "the store of a user is not to be written"
    return found


def _records(data: bytes, name: str) -> bool:
    try:
        path = place() / name
        path.write_bytes(data)
        source = check_input(path)
    except UsageError:
        return False
    assert [source.record(at).id for at in range(len(source.ids))] == list(source.ids)
    return True
