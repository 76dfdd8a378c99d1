"""Fewer bits for the weights, by llama.cpp's own routine.

    python -m scripts.train_demo_trio quantize --work W F16_FOLDER OUT --type q6_k

K-quants need rows of a multiple of 256 numbers; llama.cpp takes a type of its own choice for a
matrix that has others. The embedding serves as output, so it keeps at least six bits.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

TYPES = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "q5_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q5_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0,
    "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
ROLES = ("target", "expert", "base")


class NotQuantized(Exception):
    """llama.cpp refused; what it said stands above."""


def _as_imatrix(importance: Mapping[str, NDArray[np.float32]]) -> ctypes.Array[ctypes.Structure]:
    """The array that llama.cpp reads, ended by an entry without a name."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def quantize(
    source: Path,
    out: Path,
    kind: str,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write `out` from a file of F16 or F32 weights.

    Args:
        source: of the weights.
        out: the new file.
        kind: one of TYPES.
        importance: mean square of what each column is multiplied with, by the matrix' name.
    """
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = TYPES[kind]
    settings.nthread = 1
    held = {n: np.ascontiguousarray(v, np.float32) for n, v in (importance or {}).items()}
    if held:
        settings.imatrix = _as_imatrix(held)
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), settings):
        raise NotQuantized(f"{source} could not be written as {kind}")


def quantize_trio(folder: Path, out: Path, kind: str, importance: Path | None) -> list[str]:
    """The three files of a folder; returns a line about each and one about all."""
    out.mkdir(parents=True, exist_ok=True)
    lines, whole = [], 0
    for role in ROLES:
        path = out / f"{role}.gguf"
        if kind == "f16":
            shutil.copyfile(folder / path.name, path)
        else:
            quantize(folder / path.name, path, kind, _read(importance, role))
        whole += path.stat().st_size
        lines.append(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return [*lines, f"together {whole / 1e6:.1f} MB"]


def _read(folder: Path | None, role: str) -> dict[str, NDArray[np.float32]]:
    if folder is None:
        return {}
    with np.load(folder / f"{role}.npz") as saved:
        return {name: saved[name] for name in saved.files}
