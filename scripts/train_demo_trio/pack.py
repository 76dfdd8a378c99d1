"""One compressed file that holds all that training needs: documents and both vocabularies.

    PACK/trio.tar.xz       preset, documents.jsonl, target.tokenizer.json, proxy.spm
    PACK/manifest.json     its size, its digest, and what became of every source

It can be carried to a machine that has nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.train_demo_trio.corpus import Document

NAME, MANIFEST = "trio.tar.xz", "manifest.json"
_DOCUMENTS, _PRESET = "documents.jsonl", "preset"
# A window that holds several sources: 64 MiB, for which xz wants 700 MiB to write, 65 to read.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 64 << 20}]


@dataclass(frozen=True, slots=True)
class Pack:
    """What a pack holds.

    Attributes:
        preset: name of the one that it was made for.
        documents: cleaned, held-out ones among them.
        files: the two vocabularies, by file name.
    """

    preset: str
    documents: Sequence[Document]
    files: dict[str, bytes]


class BadPack(Exception):
    """A pack that is not what its manifest says."""


def write(folder: Path, pack: Pack, report: Sequence[str]) -> Path:
    """Write the pack and its manifest into a folder; returns the pack's path."""
    lines = (
        json.dumps({"source": d.source, "id": d.id, "text": d.text}, ensure_ascii=False)
        for d in pack.documents
    )
    members = {
        _PRESET: pack.preset.encode(),
        **pack.files,
        _DOCUMENTS: "\n".join(lines).encode(),
    }
    path = folder / NAME
    with (
        lzma.open(path, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w") as archive,
    ):
        for name, content in members.items():
            entry = tarfile.TarInfo(name)  # without time and owner: the same text, the same file
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    told = {
        "file": NAME,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "preset": pack.preset,
        "documents": len(pack.documents),
        "held_out": sum(d.held_out for d in pack.documents),
        "sources": list(report),
    }
    (folder / MANIFEST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def preset_of(folder: Path) -> str:
    """The preset that a pack was made for, without reading the pack."""
    return str(json.loads((folder / MANIFEST).read_text("utf-8"))["preset"])


def read(folder: Path) -> Pack:
    """Read a pack, checked against its manifest."""
    path = folder / NAME
    told = json.loads((folder / MANIFEST).read_text("utf-8"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
        raise BadPack(f"{path} is not the file that {MANIFEST} describes")
    files: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            files[entry.name] = content.read() if content else b""
    records = map(json.loads, files.pop(_DOCUMENTS).decode().split("\n"))
    documents = [Document(r["source"], r["id"], r["text"]) for r in records]
    return Pack(files.pop(_PRESET).decode(), documents, files)
