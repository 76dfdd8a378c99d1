"""The vocabularies and chat templates of real models, from the source distribution of the binding.

llama.cpp keeps the vocabularies of some twenty models for its own tests (`ggml-vocab-*.gguf`,
with texts in `.inp` and their tokens in `.out`). The wheel leaves them out, so they are taken from
the source distribution: fetched once through pip (76 MB), kept in the user's cache folder (about
75 MB) or in `$CAPT_LOCAL_TEST_CACHE`. Nothing is built.

    python scripts/real_vocabularies.py     # fetches them and says where they are
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from platformdirs import user_cache_dir

BINDING = "llama-cpp-python"
VERSION = "0.3.36"
_MEMBER = re.compile(
    r"[^/]+/vendor/llama\.cpp/models/(?:ggml-vocab-[a-z0-9.-]+|templates/[\w.-]+\.jinja)"
)
_OFFLINE = re.compile(
    r"connection|name resolution|unreachable|timed out|max retries|proxy", re.IGNORECASE
)


class VocabulariesUnavailable(Exception):
    """The files could not be fetched.

    Attributes:
        offline: whether the network is the reason.
    """

    def __init__(self, message: str, *, offline: bool) -> None:
        super().__init__(message)
        self.offline = offline


def cache_folder() -> Path:
    """Where the vocabularies are kept."""
    chosen = os.environ.get("CAPT_LOCAL_TEST_CACHE")
    base = Path(chosen) if chosen else Path(user_cache_dir("capt-local", appauthor=False))
    return base / f"models-{VERSION}"


def fetch() -> Path:
    """The folder with all vocabulary files, fetched if they are not there yet.

    Raises:
        VocabulariesUnavailable: pip could not download the source distribution.
    """
    folder = cache_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = _download(Path(scratch))
        found = Path(scratch) / "found"
        found.mkdir()
        _extract(archive, found)
        try:
            found.rename(folder)  # all of it at once, or nothing
        except OSError:
            if not folder.is_dir():  # another process was not faster either
                raise
    return folder


def vocabulary(name: str) -> Path:
    """One vocabulary, such as "qwen2" or "llama-spm"."""
    return fetch() / f"ggml-vocab-{name}.gguf"


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", BINDING, "--retries", "1", "--dest", str(folder)]
    done = subprocess.run(
        [*command, f"{BINDING}=={VERSION}"], capture_output=True, text=True, check=False
    )
    archives = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        lines = done.stderr.strip().splitlines()
        raise VocabulariesUnavailable(
            f"pip could not download the source of {BINDING} {VERSION}: "
            f"{lines[-1] if lines else 'no reason given'}",
            offline=bool(_OFFLINE.search(done.stdout + done.stderr)),
        )
    return archives[0]


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as members:
        for member in members:
            source = members.extractfile(member) if _MEMBER.fullmatch(member.name) else None
            if source is not None:
                with (folder / PurePosixPath(member.name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)


if __name__ == "__main__":
    try:
        print(fetch())
    except VocabulariesUnavailable as error:
        sys.exit(str(error))
