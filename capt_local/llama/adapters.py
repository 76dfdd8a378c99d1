"""LoRA adapters: whether one fits a model.

llama.cpp ends the process over some adapters (of embeddings that serve as output too, or with ranks
that differ) and passes over norms without a word. So the header of an adapter is compared with that
of its model first.
"""

from __future__ import annotations

from pathlib import Path

from capt_local.errors import ModelError
from capt_local.llama.gguf_header import FLOAT32, Header, read_header

_KINDS = {0, 1, 8, 30}  # F32, F16, Q8_0, BF16: what the converter of llama.cpp writes
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_NORM = "_norm.weight"


def check_adapter(
    path: Path, header: Header, model: str, place: Path | None = None
) -> tuple[str, ...]:
    """Whether an adapter fits the model of a header; what the user should know of it.

    Raises:
        ModelError: it is missing, damaged, no LoRA adapter, or one of another model.
    """
    found = read_header(path, place)
    if reason := _other_kind(found, header) or _misfit(found, header):
        raise misfit(path, model, reason)
    norms = sum(one.name.endswith(_NORM) for one in found.tensors)
    if not norms:
        return ()
    return (
        f"{path.name}: {norms} norms in it are left out, since llama.cpp puts adapters on matrices "
        "alone; the model is not quite the one that was trained.",
    )


def _other_kind(adapter: Header, model: Header) -> str | None:
    """What is wrong with an adapter as a whole."""
    values = adapter.values
    if values.get("general.type") != "adapter" or values.get("adapter.type") != "lora":
        return "it is not a LoRA adapter"
    if adapter.architecture != model.architecture:
        return (
            f"it is made for the architecture {adapter.architecture}, "
            f"the model has {model.architecture}"
        )
    alpha = values.get("adapter.lora.alpha", 1.0)
    if adapter.kinds.get("adapter.lora.alpha", FLOAT32) != FLOAT32:
        return "its alpha is not a number of 32 bits"
    if not (isinstance(alpha, float) and 0 < alpha < float("inf")):
        return "its alpha is not a number above 0; llama.cpp takes 0 for no alpha at all"
    if "adapter.alora.invocation_tokens" in adapter.lengths:
        return "it is one that begins in the middle of a text (aLoRA), which is not supported here"
    return None


def _misfit(adapter: Header, model: Header) -> str | None:
    """What is wrong with the matrices of an adapter."""
    shapes = {one.name: one.shape for one in model.tensors}
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for one in adapter.tensors:
        name, _, part = one.name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            if one.kind not in _KINDS:
                return "a matrix has a number format that adapters do not have"
            pairs.setdefault(name, {})[part] = _plain(one.shape)
        elif not one.name.endswith(_NORM):
            return "it holds something else than pairs of matrices"
    if not pairs:
        return "it holds no matrices"
    for name, pair in pairs.items():
        if len(pair) != 2:
            return "one matrix of a pair is missing"
        if name not in shapes:
            return "it changes a matrix that the model does not have"
        if name == _EMBEDDING and _OUTPUT not in shapes:
            return (
                "it changes the embeddings, which in this model serve as output too; llama.cpp "
                "cannot do that. Make the adapter without them, or give the model an output matrix"
            )
        if not _pair_fits(name, pair["lora_a"], pair["lora_b"], shapes[name]):
            return "its matrices have other shapes than those of the model"
    return None


def _pair_fits(name: str, a: tuple[int, ...], b: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Shapes with the fastest dimension first: whole (in, out), a (in, rank), b (rank, out)."""
    if name == _EMBEDDING:  # rows are taken from it: its `a` is (rank, tokens), `b` (rank, width)
        return len(a) == len(b) == 2 and a[0] == b[0] and (b[1], a[1]) == whole
    return (
        len(a) == len(b) >= 2 and a[1] == b[0] and (a[0], b[1], *b[2:]) == whole and a[2:] == b[2:]
    )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of two dimensions, or more where these are not empty: tools write it as they like."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 1 else shape


def misfit(adapter: Path, model: str, reason: str) -> ModelError:
    """The error of an adapter that cannot be used with the model of that file name."""
    return ModelError(f"{adapter.name} cannot be used as an adapter of {model}: {reason}.")
