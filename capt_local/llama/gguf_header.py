"""Reads and validates the header of a GGUF file in Python, before llama.cpp loads it.

A broken header can abort the process inside llama.cpp, and a truncated file crashes it later. So
counts, lengths, names, sizes and the offset of every tensor are checked against limits and the size
of the file, and only known architectures and tokenizers are accepted. The reader of the `gguf`
package is not used: it accepts overlapping tensors, and a false array length keeps it busy for
minutes. The values serve to estimate memory; the vocabulary is skipped, as llama.cpp reads it.

The header of a LoRA adapter is also compared with that of its model: llama.cpp aborts the process
on some adapters (of embeddings tied to the output, or with ranks that differ), and silently ignores
adapted norms.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from capt_local.errors import ModelError

Scalar = int | float | bool | str
Numbers = tuple[int | float | bool, ...]

# GGUF value types: id -> struct format. 8 is a string and 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9

_LONGEST_TEXT = 16 << 20  # bytes of a string; a chat template has some thousands
_MOST_TEXTS = 1 << 22  # strings in an array; a vocabulary with merges has some hundred thousand
_MOST_LISTED = 1 << 24  # numbers in an array
_LONGEST_HEADER = 1 << 28  # bytes
_KEPT_ARRAY = 1024
_CHUNK = 1 << 20

_MOST_TENSORS = 1 << 16
_MOST_PAIRS = 1 << 14
_MOST_NUMBERS = 1 << 48  # of a tensor
_LONGEST_KEY = (1 << 16) - 1  # bytes, as GGUF has it
_LONGEST_NAME = 63  # bytes, of a tensor: what llama.cpp has space for
_WIDEST_ALIGNMENT = 1 << 16

# Allow list: the autoregressive language models among the architectures of the pinned llama.cpp.
# Excluded are encoders and embedding models (BERT and its kin, T5), diffusion models (LLaDA, Dream,
# RND1), speech and audio, draft models that need another model's hidden states (EAGLE-3, DFlash,
# Gemma-4 assistants) and pure vision models.
_NAMES = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom
    chatglm codeshell cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek32 deepseek4
    dots1 dots3note ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2
    gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj gptneox granite
    granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hy_v3
    hy_v4 internlm2 jais jais2 jamba kimi-k3 kimi-linear laguna lfm2 lfm2moe llama llama4 maincoder
    mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3
    mistral4 mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm
    orion pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3
    qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2 rwkv7
    seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
    """
ARCHITECTURES = frozenset(_NAMES.split())
# Byte-level BPE, SentencePiece and similar; not those that normalise text (WordPiece, Unigram).
TOKENIZERS = frozenset({"gemma4", "gpt2", "llama", "plamo2", "rwkv"})
NO_VOCABULARY = ("none", "no_vocab")  # what converters write where there is none
_ENCODER = "bert"  # architecture and tokenizer of accepted encoders

_PLAIN_NAME = re.compile(r"[\w.-]{1,40}", re.ASCII)

# Upper limits, above those of any model, of the sizes that this program computes with; the first
# three must be present and above 0.
_LARGEST = {
    "block_count": 1 << 12, "context_length": 1 << 31, "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 24, "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16, "attention.key_length": 1 << 16,
    "attention.value_length": 1 << 16, "ssm.conv_kernel": 1 << 16, "ssm.inner_size": 1 << 24,
    "ssm.state_size": 1 << 16,
}  # fmt: skip
_COUNTED = ("block_count", "context_length", "embedding_length")
# Arrays of the vocabulary, with the value types that llama.cpp assumes without checking.
_LISTS = {
    "tokenizer.ggml.tokens": (STRING,),
    "tokenizer.ggml.merges": (STRING,),
    "tokenizer.ggml.token_type": (INT32,),
    "tokenizer.ggml.scores": (FLOAT32, INT32),
}
# Block sizes in which the package differs from ggml: its Q8_1 has sums of 32 bits, and Q2_0 (42) is
# newer than the package.
_NEWER_TYPES = {9: (32, 36), 42: (64, 18)}


@cache
def tensor_types() -> Mapping[int, tuple[int, int]]:
    """Numbers in a block and bytes of a block, by ggml's id of the number format."""
    from gguf.constants import GGML_QUANT_SIZES  # imported here, since it takes 0.2 s

    return {int(kind): pair for kind, pair in GGML_QUANT_SIZES.items()} | _NEWER_TYPES


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    name: str  # such as "blk.0.attn_q.weight"
    shape: tuple[int, ...]  # the fastest dimension first
    size: int  # bytes
    kind: int  # ggml's id of the number format
    place: int = 0  # offset in the file, in bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file, without its vocabulary; mappings are by key."""

    file_size: int  # bytes
    values: dict[str, Scalar] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)  # GGUF value type of each scalar
    arrays: dict[str, Numbers] = field(default_factory=dict)  # short ones
    lengths: dict[str, int] = field(default_factory=dict)  # of every array
    # Offset in the file and length of each value, its type field included.
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()  # in the order of the file

    @property
    def architecture(self) -> str:
        """Such as "llama" or "qwen2"."""
        return str(self.values.get("general.architecture", ""))

    def number(self, key: str, default: int = 0) -> int:
        """A whole number under `<architecture>.<key>`."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else default


def read_header(path: Path, place: Path | None = None, *, encoder: bool = False) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
        path: of the file; errors name it without its folder.
        place: where to open it instead; see `llama.weights.LockedFile`.
        encoder: whether it has to be an encoder instead of a model that writes.

    Raises:
        ModelError: the file is missing, no GGUF, cut off, impossible, or of a kind that is not
            accepted.
    """
    with readable(path), (place or path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return parse_header(file, path.name, size, encoder=encoder)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Errors of the system, in what is done with a model file, as ModelError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(f"{path.name}: there is no such model file.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


def parse_header(file: BinaryIO, name: str, size: int, *, encoder: bool = False) -> Header:
    """The header of an open file of `size` bytes, checked; see `read_header`."""
    return _Parser(file, name, size).parsed(encoder)


class FileDigests(NamedTuple):
    """Digests of a file's tokenizer and chat template.

    Attributes:
        tokenizer: SHA-256 over every `tokenizer.` key except templates, in order of their names:
            length of the name, name, length of the value, and the value as in the file with its
            GGUF type (lengths as 8 bytes, little-endian).
        template: SHA-256 of the chat template in UTF-8; None where the file has none.
    """

    tokenizer: str
    template: str | None


def file_digests(path: Path, header: Header | None = None) -> FileDigests:
    """The digests of a GGUF file's tokenizer and template; nothing is loaded.

    Raises:
        ModelError: it is not a GGUF that can be read.
    """
    header = header or read_header(path)
    digest = hashlib.sha256()
    template_key = "tokenizer.chat_template"
    with readable(path), path.open("rb") as file:
        for key, (start, size) in sorted(header.places.items()):
            if key.startswith("tokenizer.") and not key.startswith(template_key):
                file.seek(start)
                for part in (key.encode("utf-8", "replace"), file.read(size)):
                    digest.update(len(part).to_bytes(8, "little") + part)
    template = header.values.get(template_key)
    pinned = hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None
    return FileDigests(digest.hexdigest(), pinned)


class _Parser:
    """A sequential reader of a header, which keeps the bytes read in memory (some MB)."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._place = 0
        self._data = bytearray()
        self._header = Header(size)

    def parsed(self, encoder: bool) -> Header:
        header = self._header
        if self._size < 24 or self._take(4) != b"GGUF":
            raise ModelError(f"{self._name} is not a GGUF file.")
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self._name} is a GGUF file of version {version & 0xFFFF}; 2 and 3 can be read."
            )
        tensors, pairs = self._count(_MOST_TENSORS), self._count(_MOST_PAIRS)
        for _ in range(pairs):
            self._pair()
        if header.values.get("split.count", 1) not in (0, 1):
            raise ModelError(
                f"{self._name} is one of several parts of a model. Join them into one file "
                "(llama-gguf-split --merge)."
            )
        self._check_kind(encoder)
        self._check_sizes()
        self._check_lists()
        return replace(header, tensors=self._tensors(tensors))

    def _pair(self) -> None:
        header = self._header
        key, start = self._key(_LONGEST_KEY, header.places), self._place
        kind = self._number("I")
        if kind == ARRAY:
            inner, header.lengths[key], short = self._array()
            if inner not in _LISTS.get(key, (inner,)):
                raise self._broken("a list of its vocabulary has another type")
            if short:
                header.arrays[key] = short
        else:
            header.values[key], header.kinds[key] = self._scalar(kind), kind
        header.places[key] = (start, self._place - start)

    def _check_kind(self, encoder: bool) -> None:
        architecture = self._header.values.get("general.architecture")
        tokenizer = self._header.values.get("tokenizer.ggml.model")
        if encoder and (architecture, tokenizer) != (_ENCODER, _ENCODER):
            raise ModelError(
                f"{self._name}: {_shown(architecture)} is no encoder that can score answers "
                f"({_ENCODER}). Name the file of a scorer, such as one that scripts/train_scorer "
                "made."
            )
        if not encoder and architecture not in ARCHITECTURES:
            raise ModelError(
                f"{self._name}: {_shown(architecture)} is not among the architectures that are "
                "accepted: language models that write text from left to right. Use one of them."
            )
        if not encoder and tokenizer not in (None, *NO_VOCABULARY, *TOKENIZERS):
            raise ModelError(
                f"{self._name}: {_shown(tokenizer)} is not among the tokenizers that are accepted: "
                "byte-level BPE and SentencePiece, which keep a text as it was written. Use a "
                "model with one."
            )

    def _check_sizes(self) -> None:
        header = self._header
        for name, largest in _LARGEST.items():
            key, smallest = f"{header.architecture}.{name}", int(name in _COUNTED)
            every = (header.values.get(key, smallest), *header.arrays.get(key, ()))
            if not all(isinstance(one, int) and smallest <= one <= largest for one in every):
                raise self._broken(f"{name} is no possible size")

    def _check_lists(self) -> None:
        """Checks lengths: llama.cpp reads a kind and a score per token, past an array's end."""
        header = self._header
        tokens = header.lengths.get("tokenizer.ggml.tokens", 0)
        if any(name in header.values for name in _LISTS):
            raise self._broken("a list of its vocabulary is none")
        for name in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
            if header.lengths.get(name, tokens) < tokens:
                raise self._broken("a list of its vocabulary is too short")

    def _tensors(self, count: int) -> tuple[Tensor, ...]:
        """Reads the tensors, which must be contiguous, as in llama.cpp, so that none overlap."""
        found: dict[str, Tensor] = {}
        alignment, expected = self._alignment(), 0
        for _ in range(count):
            name = self._key(_LONGEST_NAME, found)
            dimensions = self._number("I")
            if not 1 <= dimensions <= 4:
                raise self._broken("a tensor has an impossible shape")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            kind, offset = self._number("I"), self._number("Q")
            if kind not in tensor_types():
                raise self._broken(f"a tensor has the unknown number format {kind}")
            block, block_size = tensor_types()[kind]
            if min(shape) < 1 or prod(shape) > _MOST_NUMBERS or shape[0] % block:
                raise self._broken("a tensor has an impossible shape")
            if offset != expected:
                raise self._broken("a tensor does not begin where the one before ends")
            size = prod(shape) // block * block_size
            found[name] = Tensor(name, shape, size, kind, offset)
            expected = _up(offset + size, alignment)
        data = _up(self._place, alignment)  # offsets count from the end of the header
        tensors = tuple(replace(one, place=data + one.place) for one in found.values())
        if tensors and (end := tensors[-1].place + tensors[-1].size) > self._size:
            raise self._cut_off(end)
        return tensors

    def _alignment(self) -> int:
        alignment = self._header.values.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or self._header.kinds.get("general.alignment", UINT32) != UINT32
            or not 1 <= alignment <= _WIDEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._broken("its alignment is not a power of two")
        return alignment

    def _key(self, longest: int, others: Mapping[str, object]) -> str:
        """Reads a name, which must not repeat an earlier one."""
        try:
            name = self._text(longest).decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken("a name is not UTF-8") from None
        if not name or name in others:
            raise self._broken("a name is empty or stands there twice")
        return name

    def _count(self, most: int) -> int:
        count = self._number("Q")
        if count > most:
            raise self._broken(f"it claims {count} entries")
        return count

    def _scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self._text(_LONGEST_TEXT).decode("utf-8", "replace")
        if kind not in _FORMATS:
            raise self._broken("a value has an unknown type")
        value: int | float | bool = self._number(_FORMATS[kind])
        return value

    def _array(self) -> tuple[int, int, Numbers]:
        """Reads an array: the type of its values, its length, and the numbers of a short one."""
        kind, length = self._number("I"), self._number("Q")
        if length > (_MOST_TEXTS if kind == STRING else _MOST_LISTED):
            raise self._broken("a list is longer than any that is used")
        if kind == STRING:
            self._skip_texts(length)
            return kind, length, ()
        if kind not in _FORMATS:
            raise self._broken("a list has an unknown type")
        layout = f"<{_FORMATS[kind]}"
        values = np.frombuffer(self._take(length * struct.calcsize(layout)), layout)
        return kind, length, tuple(values.tolist()) if length <= _KEPT_ARRAY else ()

    def _skip_texts(self, length: int) -> None:
        """Skips the strings of an array; a vocabulary with merges has 300,000."""
        data, at = self._data, self._place
        for _ in range(length):
            if at + 8 > len(data):
                self._read_up_to(at + 8)
            size = int.from_bytes(data[at : at + 8], "little")
            if size > _LONGEST_TEXT:
                raise self._broken("a text is longer than any that is used")
            at += 8 + size
        self._place = at
        self._read_up_to(at)

    def _text(self, longest: int) -> bytes:
        length = self._number("Q")
        if length > longest:
            raise self._broken("a text is longer than any that is used")
        return self._take(length)

    def _number(self, code: str) -> int:
        layout = struct.Struct(f"<{code}")
        found: int = layout.unpack(self._take(layout.size))[0]
        return found

    def _take(self, count: int) -> bytes:
        start, self._place = self._place, self._place + count
        self._read_up_to(self._place)
        return bytes(self._data[start : self._place])

    def _read_up_to(self, end: int) -> None:
        if end > self._size:
            raise self._cut_off(end)
        if end > _LONGEST_HEADER:
            raise self._broken("its header is longer than any that is used")
        while len(self._data) < end:
            part = self._file.read(max(end - len(self._data), _CHUNK))
            if not part:
                raise self._cut_off(end)
            self._data += part

    def _broken(self, why: str) -> ModelError:
        return ModelError(f"{self._name} is damaged: {why}. Get the file again.")

    def _cut_off(self, needed: int) -> ModelError:
        return ModelError(
            f"{self._name} is cut off: it has {self._size:,} bytes but needs at least "
            f"{needed:,}. Get the file again."
        )


def _up(place: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-place // alignment) * alignment


def _shown(value: object) -> str:
    """A name from the file for an error message, if it is plain."""
    if isinstance(value, str) and _PLAIN_NAME.fullmatch(value):
        return value
    return "what the file names" if value else "a file that names none"


# --- whether a LoRA adapter fits a model ----------------------------------------------------------

_KINDS = {0, 1, 8, 30}  # F32, F16, Q8_0, BF16: what the converter of llama.cpp writes
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_NORM = "_norm.weight"


def check_adapter(
    path: Path, header: Header, model: str, place: Path | None = None
) -> tuple[str, ...]:
    """Checks that an adapter fits the model of a header; returns messages for the user.

    Raises:
        ModelError: it is missing, damaged, no LoRA adapter, or of another model.
    """
    found = read_header(path, place)
    if reason := _wrong_kind(found, header) or _matrix_mismatch(found, header):
        raise adapter_error(path, model, reason)
    norms = sum(one.name.endswith(_NORM) for one in found.tensors)
    if not norms:
        return ()
    return (
        f"{path.name}: {norms} norms in it are left out, since llama.cpp puts adapters on matrices "
        "alone; the model is not quite the one that was trained.",
    )


def _wrong_kind(adapter: Header, model: Header) -> str | None:
    """Why an adapter is of the wrong kind or architecture, or None."""
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


def _matrix_mismatch(adapter: Header, model: Header) -> str | None:
    """Why the matrices of an adapter do not fit the model, or None."""
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
    if name == _EMBEDDING:  # a lookup table, stored transposed: a (rank, tokens), b (rank, width)
        return len(a) == len(b) == 2 and a[0] == b[0] and (b[1], a[1]) == whole
    return (
        len(a) == len(b) >= 2 and a[1] == b[0] and (a[0], b[1], *b[2:]) == whole and a[2:] == b[2:]
    )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as two dimensions, or more if they are not 1: tools write it differently."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 1 else shape


def adapter_error(adapter: Path, model: str, reason: str) -> ModelError:
    """The error for an adapter that cannot be used with a model; `model` is its file name."""
    return ModelError(f"{adapter.name} cannot be used as an adapter of {model}: {reason}.")
