"""240 hostile archives from a fixed seed: a named error each, and nothing is written.

Each is made from a good one; the list is that of the traversal tricks of tar readers, of lies
about sizes, of flipped bytes anywhere, and of cut ends.
"""

from __future__ import annotations

import gzip
import io
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capt_local.bundles.archive import END, header, padding
from capt_local.bundles.manifest import MANIFEST, SIGNATURE
from capt_local.bundles.sign import read_private, sign
from capt_local.errors import ModelError
from tests.bundles.travelling import Hands, everything, make_trio

SEED = 20261122
EVIL = [
    "../escape", "/tmp/escape", "..", ".", "", "a/../../escape", "..\\escape", "C:\\escape",
    "C:escape", "\\\\host\\share", "CON", "nul.gguf", "target.gguf.", "target.gguf ", "TARGET.GGUF",
    "target.gguf/", "./target.gguf", "sub/target.gguf", "target\ngguf", "target\x1b[2Jgguf",
    "bundle.toml", "x" * 99,
]  # fmt: skip
TYPES = {
    "hard link": tarfile.LNKTYPE, "symbolic link": tarfile.SYMTYPE, "character": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE, "folder": tarfile.DIRTYPE, "pipe": tarfile.FIFOTYPE,
    "contiguous": tarfile.CONTTYPE, "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK, "sparse": tarfile.GNUTYPE_SPARSE,
    "pax": tarfile.XHDTYPE, "global": tarfile.XGLTYPE, "old file": tarfile.AREGTYPE,
}  # fmt: skip
Member = tuple[bytes, bytes]  # header, data with its padding


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Hands:
    return Hands.at(tmp_path_factory.mktemp("hostile") / "hands")


@pytest.fixture(scope="module")
def good(hands: Hands) -> bytes:
    return hands.export("good.capt").read_bytes()


def split(archive: bytes) -> list[Member]:
    found: list[Member] = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            start, end = member.offset_data, member.offset_data + member.size
            data = archive[start:end] + padding(member.size)
            found.append((archive[member.offset : start], data))
    return found


def join(members: list[Member], end: bytes = END) -> bytes:
    return b"".join(head + data for head, data in members) + end


def made(name: str, kind: bytes, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")[-512:]


def hostile(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Them without end, with names."""
    members = split(archive)
    random_ = random.Random(SEED)
    for name in EVIL:  # another name, and one more member
        body = members[2][1]
        yield (
            f"name {name!r}",
            join([*members[:2], (made(name, b"0", size=70_000), body), *members[3:]]),
        )
        yield f"more {name!r}", join([*members, (made(name, b"0", size=4), b"evil" + bytes(508))])
    for what, kind in TYPES.items():
        for link in ("/etc/passwd", "../../escape", "expert.gguf"):
            head = made("target.gguf", kind, link)
            yield f"{what} to {link}", join([*members[:2], (head, b""), *members[3:]])
        then = [(made("target.gguf", kind, "/tmp"), b""), members[2]]
        yield f"{what}, then a file through it", join([*members[:2], *then, *members[3:]])
    for place in range(len(members)):  # left out, twice, swapped
        yield f"without {place}", join(members[:place] + members[place + 1 :])
        yield f"twice {place}", join([*members[: place + 1], *members[place:]])
        other = (place + 1) % len(members)
        mixed = list(members)
        mixed[place], mixed[other] = mixed[other], mixed[place]
        yield f"swapped {place}", join(mixed)
        for lie in (0, 1, 69_999, 70_001, 1 << 40):
            name = members[place][0][:100].rstrip(b"\0").decode()
            said = [(header(name, lie), members[place][1])]
            if header(name, lie) != members[place][0]:
                yield f"{name} of {lie}", join([*members[:place], *said, *members[place + 1 :]])
    yield "no end", join(members, b"")
    yield "half an end", join(members, bytes(512))
    yield "more behind the end", join(members, END + b"\0")
    yield "a second archive behind", archive + archive
    yield "packed", gzip.compress(archive)
    yield "nothing", b""
    while True:
        place = random_.randrange(len(archive))
        yield (
            f"flipped {place}",
            flipped(archive, place, 1 << random_.randrange(8)),
        )
        place = random_.randrange(len(archive))
        yield f"cut at {place}", archive[:place]


def flipped(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def first(count: int, made: Iterator[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [next(made) for _ in range(count)]


def refused(take: Callable[[], object], around: Path) -> str:
    """The error of an import that has to fail and to leave everything as it was."""
    before = everything(around)
    with pytest.raises(ModelError) as caught:
        take()
    assert everything(around) == before
    return str(caught.value)


@pytest.mark.parametrize("part", range(8))
def test_hostile_archives(part: int, hands: Hands, good: bytes, tmp_path: Path) -> None:
    """No error tells what stands in an archive; nothing is installed or written elsewhere."""
    from capt_local.bundles import store

    chosen = first(240, hostile(good))[part::8]
    assert len(chosen) == 30
    for name, data in chosen:
        path = tmp_path / "in" / "hostile.capt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        # A good part of an earlier try would be gone on with, whatever the archive holds there.
        shutil.rmtree(store.user_folder().parent, ignore_errors=True)
        told = refused(lambda: hands.take(path), tmp_path)  # noqa: B023
        assert told.isprintable() and "escape" not in told and "passwd" not in told, name
        assert not store.user_folder().is_dir() or not list(store.user_folder().iterdir()), name
        assert not Path("/tmp/escape").exists()


def test_every_byte_of_the_signed_part(hands: Hands, good: bytes, tmp_path: Path) -> None:
    """Headers, manifest and signature: every third byte, one bit each."""
    members = split(good)
    signed = sum(len(head) + len(data) for head, data in members[:2])
    path = tmp_path / "flipped.capt"
    for place in range(0, signed, 3):
        path.write_bytes(flipped(good, place, 32))
        with pytest.raises(ModelError):
            hands.take(path)


def test_hostile_manifests_of_a_trusted_hand(hands: Hands, tmp_path: Path) -> None:
    """A key that is trusted may still have signed nonsense: names decide nothing about places."""
    folder, path = tmp_path / "from", tmp_path / "hostile.capt"
    make_trio(folder)
    text = (folder / MANIFEST).read_text()
    names = "../base.gguf", "/etc/passwd", "sub/base.gguf", "con", "bundle.sig", "..\\\\x", ".x"
    ids = "../x", "..", "con", "NUL.x", "x.", "x.lock", "x.old", "x.download"
    evil = [("base", '"base.gguf"', f'"{name}"') for name in names]
    evil += [("id", 'id = "trio"', f'id = "{name}"') for name in ids]
    for told, old, new in evil:
        changed = text.replace(old, new).encode()
        signature = sign(changed, read_private(hands.key))
        files = {MANIFEST: changed, SIGNATURE: signature}
        files |= {each.name: each.read_bytes() for each in folder.glob("*.gguf")}
        parts = (
            header(name, len(data)) + data + padding(len(data)) for name, data in files.items()
        )
        path.write_bytes(b"".join(parts) + END)
        assert told in refused(lambda: hands.take(path), tmp_path)
