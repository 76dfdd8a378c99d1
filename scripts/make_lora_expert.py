"""Write the difference between an expert and its base as a LoRA adapter of the base.

    python -m scripts.make_lora_expert BASE EXPERT ADAPTER [--rank 16|full] [--untie COPY]

BASE and EXPERT are GGUF files of one architecture and vocabulary. BASE must be the very file that
is used with the adapter, so that its quantization is part of the difference. ADAPTER has the form
that llama.cpp's converter writes: for each matrix W of shape (out, in) a pair a (rank, in) and b
(out, rank), whose product is the truncated singular value decomposition of the difference: the best
of that rank by its squares (Eckart and Young 1936). `gguf` and `scikit-learn` are needed, as in the
extra "test".

An adapter of llama.cpp can carry the matrices of attention, feed-forward, output and embeddings. It
cannot carry norms; one that stands directly before matrices is folded into these, which is exact,
since W_expert diag(n_expert) x = (W_base + D) diag(n_base) x. Nor can it change embeddings that
serve as output too: --untie COPY writes a copy of the base with an output matrix of its own, larger
by that, and makes the adapter for the copy. The rest is lost; the last lines say what, and how much
of the squared difference the rank has lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from sklearn.utils.extmath import randomized_svd

Array = npt.NDArray[np.float32]

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_CARRIED = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output",
            "ffn_gate", "ffn_up", "ffn_down", "output")  # fmt: skip
# Architectures in which each of these norms stands directly before its matrices and nothing else.
_PLAIN = ("llama", "qwen2", "qwen3")
_NORMS = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "attn_qkv": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "output": "output_norm",
}
_LEAST_NORM = 1e-3  # a smaller weight of the base's norm cannot be divided by
_EXACT = 4  # of matrices up to so many times the rank, all singular values are computed


class NoPair(Exception):
    """The files are not a base and its expert."""


class Weights:
    """The tensors of a GGUF file as numbers.

    Args:
        path: of the file.

    Attributes:
        reader: of the file.
        names: of the tensors, in the order of the file.

    Raises:
        OSError: as the system does.
        NoPair: it is no GGUF file, or not whole.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file; numbers are made when they are asked for."""
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, LookupError):
            raise NoPair(f"{path} is not a whole GGUF file") from None
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.names = list(self._tensors)

    def __getitem__(self, name: str) -> Array:
        """A tensor, rows first; the embeddings where they serve as output."""
        tensor = self._tensors.get(name) or self._tensors[_EMBEDDING]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    def text(self, key: str) -> str:
        """A text of the metadata."""
        value = self.reader.get_field(key)
        return str(value.contents()) if value else ""

    @property
    def tied(self) -> bool:
        """Whether the embeddings serve as output."""
        return _OUTPUT not in self._tensors


@dataclass
class Loss:
    """What does not go into an adapter.

    Attributes:
        tensors: the squared difference of tensors that cannot be carried, by name.
        whole: the squared difference of the matrices that can.
        rest: the part of it beyond the rank.
    """

    tensors: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    rest: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        share = 100 * self.rest / self.whole if self.whole else 0.0
        told = [f"lost by the rank: {share:.1f} % of the squared difference of the matrices"]
        if self.tensors:
            outside = sum(self.tensors.values())
            part = 100 * outside / (outside + self.whole)
            told.append(
                f"not carried: {', '.join(self.tensors)}: {part:.1f} % of the whole difference"
            )
        return told


def make_adapter(base: Weights, expert: Weights, rank: int | None, *, untied: bool) -> tuple[
    dict[str, tuple[Array, Array]], Loss
]:  # fmt: skip
    """The pairs (a, b) of an adapter, by the name of the matrix.

    Args:
        base: what the adapter is for.
        expert: what base and adapter together are to be.
        rank: of each pair; None is the full one.
        untied: whether the base gets an output matrix of its own, equal to its embeddings.

    Raises:
        NoPair: the models differ in more than their numbers.
    """
    _check(base, expert)
    pairs: dict[str, tuple[Array, Array]] = {}
    loss = Loss()
    folded: set[str] = set()
    names = [*base.names, _OUTPUT] if untied else base.names
    for name in names:
        if not _can_carry(name, base[name], tied=base.tied and not untied):
            continue
        scale = _norm_ratio(base, expert, name, folded)
        difference = expert[name] * scale - base[name]
        if not difference.any():
            continue
        pairs[name] = _pair(name, difference, rank)
        loss.whole += _square(difference)
        loss.rest += _square(difference - product(name, pairs[name]))
    for name in names:
        left = name not in pairs and name not in folded
        if left and (square := _square(expert[name] - base[name])):
            loss.tensors[name] = square
    if not pairs:
        raise NoPair("there is no difference that an adapter can carry")
    return pairs, loss


def product(name: str, pair: tuple[Array, Array]) -> Array:
    """What a pair adds to its matrix."""
    a, b = pair
    return a @ b.T if name == _EMBEDDING else b @ a


def write_adapter(path: Path, base: Weights, pairs: Mapping[str, tuple[Array, Array]]) -> None:
    """Writes an adapter; matrices as F16.

    llama.cpp multiplies each pair by alpha over its own rank. Alpha is the largest rank here, and
    `b` makes up for it where a matrix is too small for that.
    """
    alpha = max(b.shape[1] for _, b in pairs.values())
    writer = gguf.GGUFWriter(str(path), base.text("general.architecture"))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    writer.add_name(f"{base.text('general.name')} LoRA")
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", (b * (b.shape[1] / alpha)).astype(np.float16))
    _finish(writer)


def write_untied(path: Path, base: Weights) -> None:
    """Writes a copy of a base whose output is a matrix of its own, equal to its embeddings."""
    writer = gguf.GGUFWriter(str(path), base.text("general.architecture"))
    for value in base.reader.fields.values():
        if value.name != "general.architecture" and not value.name.startswith("GGUF."):
            inner = value.types[-1] if len(value.types) > 1 else None
            writer.add_key_value(value.name, value.contents(), value.types[0], sub_type=inner)
    for tensor in base.reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if tensor.name == _EMBEDDING:
            writer.add_tensor(_OUTPUT, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(base: Weights, expert: Weights) -> None:
    key = "general.architecture"
    if base.text(key) != expert.text(key):
        raise NoPair("base and expert have different architectures")
    if set(base.names) != set(expert.names):
        raise NoPair("base and expert have different tensors")
    if any(base[name].shape != expert[name].shape for name in base.names):
        raise NoPair("base and expert have tensors of different shapes")


def _can_carry(name: str, values: Array, *, tied: bool) -> bool:
    if values.ndim != 2 or not name.endswith(".weight"):
        return False
    return not tied if name == _EMBEDDING else _part(name) in _CARRIED


def _part(name: str) -> str:
    """The kind of a tensor: "blk.3.attn_q.weight" is an "attn_q"."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _norm_ratio(base: Weights, expert: Weights, name: str, folded: set[str]) -> Array | float:
    """By what the columns of the expert's matrix are multiplied to hold the change of the norm."""
    before = _NORMS.get(_part(name))
    if before is None or base.text("general.architecture") not in _PLAIN:
        return 1.0
    norm = name.replace(_part(name), before)
    if norm not in base.names or np.abs(base[norm]).min() < _LEAST_NORM:
        return 1.0
    folded.add(norm)
    return expert[norm] / base[norm]


def _pair(name: str, difference: Array, rank: int | None) -> tuple[Array, Array]:
    """The two factors of the best approximation of a rank, the singular values in equal parts."""
    kept = min(rank or max(difference.shape), *difference.shape)
    if kept * _EXACT < min(difference.shape):
        left, values, right = randomized_svd(difference, kept, random_state=0)
    else:
        left, values, right = np.linalg.svd(difference, full_matrices=False)
    root = np.sqrt(values[:kept])
    b, a = left[:, :kept] * root, root[:, None] * right[:kept]
    # The rows of embeddings are looked up in `a`, so there it is the side of the tokens.
    return (b, np.ascontiguousarray(a.T)) if name == _EMBEDDING else (a, b)


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _told(arguments: argparse.Namespace) -> Iterator[str]:
    rank = None if arguments.rank == "full" else int(arguments.rank)
    base, expert = Weights(arguments.base), Weights(arguments.expert)
    untied = arguments.untie is not None and base.tied
    pairs, loss = make_adapter(base, expert, rank, untied=untied)
    write_adapter(arguments.adapter, base, pairs)
    yield f"{_named(arguments.adapter)}, {len(pairs)} matrices"
    if untied:
        write_untied(arguments.untie, base)
        yield _named(arguments.untie)
    yield from loss.lines()


def _named(path: Path) -> str:
    return f"{path}  {path.stat().st_size / 1e6:,.2f} MB"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("expert", type=Path)
    parser.add_argument("adapter", type=Path, help="the file to write")
    parser.add_argument("--rank", default="16", help="of each pair, or 'full'")
    parser.add_argument("--untie", type=Path, metavar="COPY", help="write this copy of the base")
    arguments = parser.parse_args()
    if arguments.rank != "full" and not (arguments.rank.isdecimal() and int(arguments.rank)):
        parser.error("--rank takes a whole number from 1, or 'full'")
    given = {arguments.base.resolve(), arguments.expert.resolve()}
    if given & {each.resolve() for each in (arguments.adapter, arguments.untie) if each}:
        parser.error("the file to write is one of the models")
    try:
        for line in _told(arguments):
            print(line)
    except NoPair as error:
        sys.exit(f"{error}.")
    except OSError as error:
        sys.exit(f"{error.filename or 'a file'}: {error.strerror}.")


if __name__ == "__main__":
    main()
