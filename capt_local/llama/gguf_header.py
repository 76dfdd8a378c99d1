"""The header of a GGUF file, read and checked in Python before llama.cpp sees the file.

A broken header can abort the process inside llama.cpp, and a truncated file ends it later. So
counts, lengths, names, sizes, the numbers that scale a computation and the place of every tensor
are compared with limits and with the size of the file, and only known architectures and tokenizers
are accepted. Key names, tensor types and block sizes are those of the `gguf` package. Its reader is
not used: it accepts tensors that overlap, and a list of a length that is a lie keeps it busy for
minutes. The values serve to estimate memory; the vocabulary is skipped (llama.cpp reads it).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite, prod
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

_LONGEST_TEXT = 16 << 20  # bytes; a chat template has some thousands
_MOST_TEXTS = 1 << 22  # in a list; a vocabulary with its merges has some hundred thousand
_MOST_LISTED = 1 << 24  # numbers in a list
_LONGEST_HEADER = 1 << 28  # bytes
_KEPT_ARRAY = 1024
_CHUNK = 1 << 20

_MOST_TENSORS = 1 << 16
_MOST_PAIRS = 1 << 14
_MOST_DIMENSIONS = 4
_MOST_NUMBERS = 1 << 48  # of a tensor
_LONGEST_KEY = (1 << 16) - 1  # bytes, as GGUF has it
_LONGEST_NAME = 63  # bytes, of a tensor: what llama.cpp has space for
_WIDEST_ALIGNMENT = 1 << 16
_MOST_PARTS = 1 << 10

# Architectures of the pinned llama.cpp that write text from left to right by themselves: a list of
# those that are accepted. Left out are encoders and embedders (BERT and its kin, T5), diffusion
# models (LLaDA, Dream, RND1), speech and audio, drafts that need the inside of another model
# (EAGLE-3, DFlash, Gemma-4 assistants) and readers of pictures alone.
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
ENCODERS = {"bert": frozenset({"bert"})}
"""Architectures that turn a text into one vector, with their tokenizers."""
# Byte-level BPE, SentencePiece and their kin; not those that rewrite the text (WordPiece, Unigram).
NO_VOCABULARY = ("none", "no_vocab")  # what converters write where there is none
TOKENIZERS = frozenset({"gemma4", "gpt2", "llama", "plamo2", "rwkv"})


_PLAIN_NAME = re.compile(r"[\w.-]{1,40}", re.ASCII)
# llama.cpp names the parts of a split model like this, and finds them by it.
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

# Block sizes in which the package differs from ggml: its Q8_1 has sums of 32 bits, and Q2_0 (42) is
# newer than the package.
_NEWER_TYPES = {9: (32, 36), 42: (64, 18)}


class _Rules(NamedTuple):
    """What the values of a header may be; keys of the architecture without its name.

    Attributes:
        tensor_types: numbers in a block and bytes of a block, by ggml's id of the format.
        largest: the sizes that this program computes with, and more than any model has.
        counted: sizes that cannot be 0 where they are given.
        positive: factors that cannot be 0.
        lists: lists of the vocabulary with the value types that they may have.
    """

    tensor_types: dict[int, tuple[int, int]]
    largest: dict[str, int]
    counted: frozenset[str]
    positive: frozenset[str]
    lists: dict[str, tuple[int, ...]]


@cache
def rules() -> _Rules:
    """The rules, by the names of the `gguf` package (imported here: it takes 0.2 s)."""
    from gguf.constants import GGML_QUANT_SIZES, Keys

    def key(name: str) -> str:
        return name.format(arch="").removeprefix(".")

    attention, model, rope, ssm = Keys.Attention, Keys.LLM, Keys.Rope, Keys.SSM
    return _Rules(
        tensor_types={int(kind): pair for kind, pair in GGML_QUANT_SIZES.items()} | _NEWER_TYPES,
        largest={
            key(model.BLOCK_COUNT): 1 << 12,
            key(model.CONTEXT_LENGTH): 1 << 31,
            key(model.EMBEDDING_LENGTH): 1 << 20,
            key(model.FEED_FORWARD_LENGTH): 1 << 24,
            key(attention.HEAD_COUNT): 1 << 16,
            key(attention.HEAD_COUNT_KV): 1 << 16,
            key(attention.KEY_LENGTH): 1 << 16,
            key(attention.VALUE_LENGTH): 1 << 16,
            key(ssm.CONV_KERNEL): 1 << 16,
            key(ssm.INNER_SIZE): 1 << 24,
            key(ssm.STATE_SIZE): 1 << 16,
        },
        counted=frozenset(
            map(key, (model.BLOCK_COUNT, model.CONTEXT_LENGTH, model.EMBEDDING_LENGTH))
        ),
        positive=frozenset({key(rope.FREQ_BASE), key(rope.FREQ_BASE_SWA)}),
        lists={
            Keys.Tokenizer.LIST: (STRING,),
            Keys.Tokenizer.MERGES: (STRING,),
            Keys.Tokenizer.TOKEN_TYPE: (INT32,),
            Keys.Tokenizer.SCORES: (FLOAT32, INT32),
        },
    )


# Factors that may be below 0: "not given" in older files, or a bound that is negative by nature.
_MAY_BE_NEGATIVE = ("rope.scaling.yarn_ext_factor", "kda.gate_lower_bound")
# Whole numbers that are sizes by the end of their names.
_SIZE = re.compile(r"(_length|_count|\.count|_size|_rank|_dim|_kernel|sliding_window)(_\w+)?$")
_LARGEST_EPSILON = 1.0


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: such as "blk.0.attn_q.weight".
        shape: the fastest dimension first.
        size: bytes.
        kind: ggml's id of the number format.
        place: first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kind: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself, without its vocabulary.

    Attributes:
        file_size: bytes.
        values: scalars by key.
        arrays: short arrays of numbers by key.
        lengths: length of every array by key.
        tensors: in the order of the file.
        kinds: GGUF value type of each scalar by key.
        places: first byte in the file and length of each value by key, its type in front of it.
    """

    file_size: int
    values: dict[str, Scalar]
    arrays: dict[str, Numbers]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    kinds: dict[str, int]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Such as "llama" or "qwen2"."""
        return str(self.values.get("general.architecture", ""))

    @property
    def parts(self) -> int:
        """How many files the model is split into; 1 for a whole one."""
        count = self.values.get("split.count", 1)
        return max(count, 1) if isinstance(count, int) else 1

    def number(self, key: str, default: int = 0) -> int:
        """A whole number under `<architecture>.<key>`."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else default


def read_header(path: Path, place: Path | None = None, *, encoder: bool = False) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
        path: of the file.
        place: where to open it instead; see `llama.locked_file`.
        encoder: whether it has to be an encoder instead of a model that writes.

    Raises:
        ModelError: the file is missing, is not a GGUF, is cut off, holds impossible numbers, or is
            of a kind that is not accepted. The message has the file's name, not its folder.
    """
    try:
        with (place or path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return parse_header(file, path.name, size, encoder=encoder)
    except FileNotFoundError:
        raise ModelError(f"{path.name}: there is no such model file.") from None
    except IsADirectoryError:
        raise ModelError(f"{path.name} is a folder, not a GGUF file.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None


def parse_header(file: BinaryIO, name: str, size: int, *, encoder: bool = False) -> Header:
    """The header of an open file, checked.

    Args:
        file: at its beginning.
        name: for errors.
        size: bytes of the file.
        encoder: see `read_header`.

    Raises:
        ModelError: see `read_header`.
    """
    return _Parser(GgufReader(file, name, size), name, size, encoder).header()


def model_parts(path: Path, header: Header) -> tuple[Path, ...]:
    """The files of a model: itself, or all parts of a split one in their order.

    Args:
        path: of the first part.
        header: of it.

    Raises:
        ModelError: `path` is not the first part, or a part is missing; names it.
    """
    if header.parts == 1:
        return (path,)
    found = _PART_NAME.fullmatch(path.name)
    if header.values.get("split.no", 0) != 0 or found is None or int(found[2]) != 1:
        raise ModelError(
            f"{path.name} is not the first of the {header.parts} parts of its model. Name the file "
            f"that ends in -00001-of-{header.parts:05}.gguf, with the others beside it."
        )
    parts = tuple(
        path.with_name(f"{found[1]}-{number:05}-of-{header.parts:05}.gguf")
        for number in range(1, header.parts + 1)
    )
    for part in parts:
        if not part.exists():
            raise ModelError(
                f"{path.name} is one of {header.parts} parts of a model, and {part.name} is not "
                "beside it. Get the missing part."
            )
    return parts


def read_model_header(
    path: Path, places: Sequence[Path] = (), first: Header | None = None
) -> Header:
    """The header of a model: of its file, or of all parts with all tensors and sizes together.

    Args:
        path: of the file, or of the first part.
        places: where to open the parts instead; see `llama.locked_file`.
        first: the header of the first part, if it was read already.

    Raises:
        ModelError: see `read_header` and `model_parts`.
    """
    first = first or read_header(path, places[0] if places else None)
    if first.parts == 1:
        return first
    parts = model_parts(path, first)
    headers = [first]
    for number, (part, place) in enumerate(zip(parts, places or parts, strict=True)):
        if number:
            header = read_header(part, place)
            if (header.values.get("split.no"), header.parts) != (number, first.parts):
                raise ModelError(
                    f"{part.name} is not part {number + 1} of the model that it names."
                )
            headers.append(header)
    return replace(
        first,
        file_size=sum(one.file_size for one in headers),
        tensors=tuple(tensor for one in headers for tensor in one.tensors),
    )


@dataclass(frozen=True, slots=True)
class FileDigests:
    """What shows whether two files read text in the same way.

    Attributes:
        tokenizer: SHA-256 over every `tokenizer.` key but the templates, in the order of the names:
            the length of the name, the name, the length of the value, and the value as it stands in
            the file (lengths as 8 bytes, little end first; the value with its GGUF type).
        template: SHA-256 of the chat template in UTF-8; None where the file has none.
    """

    tokenizer: str
    template: str | None


def file_digests(path: Path, header: Header | None = None) -> FileDigests:
    """The digests of a GGUF file's tokenizer and template; nothing is loaded.

    Args:
        path: of the file.
        header: of it, if it was read already.

    Raises:
        ModelError: it is not a GGUF that can be read.
    """
    header = header or read_header(path)
    digest = hashlib.sha256()
    template_key = "tokenizer.chat_template"
    try:
        with path.open("rb") as file:
            for key, (start, size) in sorted(header.places.items()):
                if key.startswith("tokenizer.") and not key.startswith(template_key):
                    file.seek(start)
                    for part in (key.encode("utf-8", "replace"), file.read(size)):
                        digest.update(len(part).to_bytes(8, "little") + part)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from None
    template = header.values.get(template_key)
    pinned = hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None
    return FileDigests(digest.hexdigest(), pinned)


class _Parser:
    """Knows what stands where in a header, and what it may say."""

    def __init__(self, reader: GgufReader, name: str, size: int, encoder: bool) -> None:
        self._reader = reader
        self._name = name
        self._size = size
        self._check_kind = check_encoder if encoder else check_kind
        self._rules = rules()
        self._values: dict[str, Scalar] = {}
        self._kinds: dict[str, int] = {}
        self._arrays: dict[str, Numbers] = {}
        self._lengths: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def header(self) -> Header:
        if self._size < 24 or self._reader.take(4) != b"GGUF":
            raise ModelError(f"{self._name} is not a GGUF file.")
        version = self._reader.number("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self._name} is a GGUF file of version {version & 0xFFFF}; 2 and 3 can be read."
            )
        tensors, pairs = self._count(_MOST_TENSORS), self._count(_MOST_PAIRS)
        for _ in range(pairs):
            self._pair()
        self._check_parts()
        # A later part of a split model has its tensors alone; the first part says what it is.
        if not self._values.get("split.no"):
            architecture = self._values.get("general.architecture")
            self._check_kind(self._name, architecture, self._values.get("tokenizer.ggml.model"))
            self._check_sizes(str(architecture))
            self._check_factors(str(architecture))
            self._check_lists()
        found = self._tensors(tensors)
        return Header(
            self._size, self._values, self._arrays, self._lengths, found, self._kinds, self._places
        )

    def _pair(self) -> None:
        key, start = self._key(_LONGEST_KEY, self._places), self._reader.place
        kind = self._reader.number("I")
        if kind == ARRAY:
            inner, self._lengths[key], short, finite = self._reader.array()
            if inner not in self._rules.lists.get(key, (inner,)):
                raise self._reader.broken("a list of its vocabulary has another type")
            if not finite:
                raise self._reader.broken(f"{_shown_key(key)} holds a number that is not finite")
            if short:
                self._arrays[key] = short
        else:
            self._values[key], self._kinds[key] = self._reader.scalar(kind), kind
        self._places[key] = (start, self._reader.place - start)

    def _key(self, longest: int, others: dict[str, tuple[int, int]] | dict[str, Tensor]) -> str:
        """The next name, which is not one of the others."""
        try:
            name = self._reader.text(longest).decode("utf-8")
        except UnicodeDecodeError:
            raise self._reader.broken("a name is not UTF-8") from None
        if not name or name in others:
            raise self._reader.broken("a name is empty or stands there twice")
        return name

    def _count(self, most: int) -> int:
        count = self._reader.number("Q")
        if count > most:
            raise self._reader.broken(f"it claims {count} entries")
        return count

    def _check_parts(self) -> None:
        for key in ("split.count", "split.no"):
            value = self._values.get(key, 0)
            if not isinstance(value, int) or not 0 <= value <= _MOST_PARTS:
                raise self._reader.broken(f"{key} is no possible number of parts")

    def _check_sizes(self, architecture: str) -> None:
        for name, largest in self._rules.largest.items():
            key = f"{architecture}.{name}"
            smallest = int(name in self._rules.counted)
            every = (self._values.get(key, smallest), *self._arrays.get(key, ()))
            if not all(isinstance(one, int) and smallest <= one <= largest for one in every):
                raise self._reader.broken(f"{name} is no possible size")
        for key, value in self._values.items():
            if isinstance(value, int) and value < 0 and _SIZE.search(key):
                raise self._reader.broken(f"{_shown_key(key)} is no possible size")

    def _check_factors(self, architecture: str) -> None:
        """Numbers that scale a computation: llama.cpp takes them as they are."""
        for key, value in self._values.items():
            if not isinstance(value, float) or key.startswith("general."):
                continue
            name = key.removeprefix(f"{architecture}.")
            smallest = float("-inf") if name in _MAY_BE_NEGATIVE else 0.0
            largest = _LARGEST_EPSILON if name.endswith("epsilon") else float("inf")
            if (
                not isfinite(value)
                or not smallest <= value <= largest
                or (value == 0 and name in self._rules.positive)
            ):
                raise self._reader.broken(f"{_shown_key(key)} is no possible value ({value:g})")

    def _check_lists(self) -> None:
        tokens = self._lengths.get("tokenizer.ggml.tokens", 0)
        for name in self._rules.lists:
            if name in self._values:
                raise self._reader.broken("a list of its vocabulary is none")
        for name in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
            if self._lengths.get(name, tokens) < tokens:
                raise self._reader.broken("a list of its vocabulary is too short")

    def _tensors(self, count: int) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = {}
        offsets = []
        for _ in range(count):
            tensor, offset = self._tensor(found)
            found[tensor.name] = tensor
            offsets.append(offset)
        return self._placed(tuple(found.values()), offsets)

    def _tensor(self, others: dict[str, Tensor]) -> tuple[Tensor, int]:
        name = self._key(_LONGEST_NAME, others)
        dimensions = self._reader.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._reader.broken("a tensor has an impossible shape")
        shape = tuple(self._reader.number("Q") for _ in range(dimensions))
        kind, offset = self._reader.number("I"), self._reader.number("Q")
        if kind not in self._rules.tensor_types:
            raise self._reader.broken(f"a tensor has the unknown number format {kind}")
        block, size = self._rules.tensor_types[kind]
        if min(shape) < 1 or prod(shape) > _MOST_NUMBERS or shape[0] % block:
            raise self._reader.broken("a tensor has an impossible shape")
        return Tensor(name, shape, prod(shape) // block * size, kind), offset

    def _placed(self, tensors: tuple[Tensor, ...], offsets: list[int]) -> tuple[Tensor, ...]:
        """Tensors with their places: one behind the other, as llama.cpp has it, so none overlap."""
        alignment = self._values.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or self._kinds.get("general.alignment", UINT32) != UINT32
            or not 1 <= alignment <= _WIDEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._reader.broken("its alignment is not a power of two")
        data = _up(self._reader.place, alignment)
        expected, found = 0, []
        for tensor, offset in zip(tensors, offsets, strict=True):
            if offset != expected:
                raise self._reader.broken("a tensor does not begin where the one before ends")
            if data + offset + tensor.size > self._size:
                raise self._reader.cut_off(data + offset + tensor.size)
            expected = _up(offset + tensor.size, alignment)
            found.append(Tensor(tensor.name, tensor.shape, tensor.size, tensor.kind, data + offset))
        return tuple(found)


def _up(place: int, alignment: int) -> int:
    """The next place that is a multiple of `alignment`."""
    return -(-place // alignment) * alignment


def check_kind(name: str, architecture: object, tokenizer: object = None) -> None:
    """Refuses models of a kind that is not accepted.

    Args:
        name: of the file.
        architecture: as the file has it.
        tokenizer: likewise; None where the file has none, as an adapter.

    Raises:
        ModelError: it is of another kind.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{name}: {_shown(architecture)} is not among the architectures that are accepted: "
            "language models that write text from left to right. Use one of them."
        )
    if tokenizer not in (None, *NO_VOCABULARY) and tokenizer not in TOKENIZERS:
        raise ModelError(
            f"{name}: {_shown(tokenizer)} is not among the tokenizers that are accepted: "
            "byte-level BPE and SentencePiece, which keep a text as it was written. Use a model "
            "with one."
        )


def check_encoder(name: str, architecture: object, tokenizer: object = None) -> None:
    """Refuses models that are no encoder of an accepted kind; see `check_kind`.

    Raises:
        ModelError: it is of another kind.
    """
    tokenizers = ENCODERS.get(architecture, ()) if isinstance(architecture, str) else ()
    if not tokenizers:
        raise ModelError(
            f"{name}: {_shown(architecture)} is no encoder that can score answers "
            f"({', '.join(ENCODERS)}). Name the file of a scorer, such as one that "
            "scripts/train_scorer made."
        )
    if tokenizer not in tokenizers:
        raise ModelError(f"{name}: {_shown(tokenizer)} is not the tokenizer of {architecture}.")


def _shown(value: object) -> str:
    """The name comes from the file, so only a plain one is shown."""
    if isinstance(value, str) and _PLAIN_NAME.fullmatch(value):
        return value
    return "what the file names" if value else "a file that names none"


def _shown_key(key: str) -> str:
    """A key comes from the file, so only a plain one is shown."""
    return key if _PLAIN_NAME.fullmatch(key) else "a value"


class GgufReader:
    """A place in a file that moves on. What was passed stays in memory, some MB of a header.

    Args:
        file: at its beginning.
        name: of the file, for errors.
        size: of it in bytes.

    Attributes:
        place: of the next byte.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.place = 0
        self._file = file
        self._name = name
        self._size = size
        self._data = bytearray()

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            ModelError: the file ends before.
        """
        start, self.place = self.place, self.place + count
        self._read_up_to(self.place)
        return bytes(self._data[start : self.place])

    def number(self, code: str) -> int:
        """The next number, in a format of `struct`.

        Raises:
            ModelError: the file ends before.
        """
        layout = struct.Struct(f"<{code}")
        found: int = layout.unpack(self.take(layout.size))[0]
        return found

    def text(self, longest: int = _LONGEST_TEXT) -> bytes:
        """The next text, with its length in front.

        Raises:
            ModelError: it is longer than that, or the file ends before.
        """
        length = self.number("Q")
        if length > longest:
            raise self.broken("a text is longer than any that is used")
        return self.take(length)

    def scalar(self, kind: int) -> Scalar:
        """The next value of a GGUF type that is no list.

        Raises:
            ModelError: there is no such type, or the file ends before.
        """
        if kind == STRING:
            return self.text().decode("utf-8", "replace")
        if kind not in _FORMATS:
            raise self.broken("a value has an unknown type")
        value: int | float | bool = self.number(_FORMATS[kind])
        return value

    def array(self) -> tuple[int, int, Numbers, bool]:
        """The next list.

        Returns:
            The type of its values, its length, the numbers of a short one, and whether all its
            numbers are finite.

        Raises:
            ModelError: it is longer than any that is used, of an unknown type, or cut off.
        """
        kind, length = self.number("I"), self.number("Q")
        if length > (_MOST_TEXTS if kind == STRING else _MOST_LISTED):
            raise self.broken("a list is longer than any that is used")
        if kind == STRING:
            self._skip_texts(length)
            return kind, length, (), True
        if kind not in _FORMATS:
            raise self.broken("a list has an unknown type")
        code = _FORMATS[kind]
        values = np.frombuffer(self.take(length * struct.calcsize(f"<{code}")), f"<{code}")
        finite = code not in "fd" or bool(np.isfinite(values).all())
        return kind, length, tuple(values.tolist()) if length <= _KEPT_ARRAY else (), finite

    def broken(self, why: str) -> ModelError:
        """The error of a header that cannot be true."""
        return ModelError(f"{self._name} is damaged: {why}. Get the file again.")

    def cut_off(self, needed: int) -> ModelError:
        """The error of a file that would have to be longer."""
        return ModelError(
            f"{self._name} is cut off: it has {self._size:,} bytes but needs at least "
            f"{needed:,}. Get the file again."
        )

    def _skip_texts(self, length: int) -> None:
        """Walks over texts; a vocabulary with its merges has 300,000."""
        data, at = self._data, self.place
        for _ in range(length):
            if at + 8 > len(data):
                self._read_up_to(at + 8)
            size = int.from_bytes(data[at : at + 8], "little")
            if size > _LONGEST_TEXT:
                raise self.broken("a text is longer than any that is used")
            at += 8 + size
        self.place = at
        self._read_up_to(at)

    def _read_up_to(self, end: int) -> None:
        if end > self._size:
            raise self.cut_off(end)
        if end > _LONGEST_HEADER:
            raise self.broken("its header is longer than any that is used")
        while len(self._data) < end:
            part = self._file.read(max(end - len(self._data), _CHUNK))
            if not part:
                raise self.cut_off(end)
            self._data += part
