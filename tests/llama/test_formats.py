"""Weight formats that crash are left out, unless the build says that it was mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from capt_local.engine.formats import mended
from capt_local.engine.library import library

HEADER = Path(__file__).parents[2] / "scripts" / "binding" / "tiles.h"
MARK = b"capt-local: whole tile configuration"


def _written(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"libggml-cpu.so.{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_the_header_leaves_the_mark_that_is_looked_for(tmp_path: Path) -> None:
    assert mended(_written(tmp_path, b"\x7fELF" + HEADER.read_bytes()))


@pytest.mark.parametrize(
    "contents", [(), (b"",), (b"\x7fELF",), (MARK[:-1],), (MARK, b"\x7fELF"), (MARK, b"")]
)
def test_one_library_without_the_mark_is_enough_to_leave_tiles_out(
    tmp_path: Path, contents: tuple[bytes, ...]
) -> None:
    assert not mended(_written(tmp_path, *contents))


def test_a_library_that_cannot_be_read_is_not_mended(tmp_path: Path) -> None:
    assert not mended([tmp_path / "missing"])


def test_here_tiles_are_left_out_or_mended() -> None:
    info = library().build_info()
    folder = Path(library().api._lib._name).parent
    amx = "AMX_INT8 = 1" in info.system_info
    assert ("AMX" in info.left_out) == (amx and not mended(folder.glob("*ggml-cpu*")))
