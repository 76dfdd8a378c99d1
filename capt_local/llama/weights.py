"""The weights of one GGUF file: loaded once, shared by any number of contexts.

A file is kept open from its check to the end of loading (`LockedFile`), so that it cannot be
replaced. The check of tensor values and the reading of the vocabulary follow the weights.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from capt_local.errors import Cancelled, MemoryShortage, ModelError, TextTooLong
from capt_local.llama.devices import Kernels, Layers, plan
from capt_local.llama.gguf_header import (
    NO_VOCABULARY,
    Header,
    adapter_error,
    check_adapter,
    read_header,
    readable,
    tensor_types,
)
from capt_local.llama.library import Closing, DeferredInterrupts, Library, library
from capt_local.llama.options import LoadOptions
from capt_local.llama.resources import check_fits, estimate
from capt_local.strict_json import Stamp, others_may_write, stamp_of
from capt_local.tokenization import TokenKind, Vocabulary

Progress = Callable[[float], None]

# Bytes of text that any pre-tokenizer can split on a stack of 8 MiB; stack per byte of longer text.
_ON_OWN_STACK, _STACK_PER_BYTE = 8192, 1024
LONGEST_RUN = 1 << 20
# Pre-tokenizers with quadratic time in the length of a run of such characters, and the run length
# that takes about a second.
_QUADRATIC = {
    "superbpe": (re.compile(r"\d+"), 4096),
    "jais-2": (re.compile(r"\s+"), 65536),
}
_STACK_SIZE = threading.Lock()  # `threading.stack_size` is one for all threads

# Formats that llama.cpp repacks for kernels that compute 4 tokens at once: a batch of 2 or 3 costs
# more than one of 4, as its tokens are computed one by one.
_BY_FOURS = ("Q4_0", "Q4_K", "IQ4_NL")
_CHECKED_AT_ONCE = 1 << 24  # bytes of a tensor

# The meaning of llama.cpp's warnings about a file for its answers, by the first matching text.
_QUALITY = {
    "missing pre-tokenizer type": (
        "does not say how its text is split before it becomes tokens (tokenizer.ggml.pre), and "
        "llama.cpp uses its default: answers may be worse. Use a newer conversion of the model."
    ),
    "bad special token": (
        "names a special token that is not in its vocabulary, and llama.cpp uses its default "
        "instead: turns and answers may end in the wrong place."
    ),
    "is not in special_eog_ids": (
        "names a token that ends an answer, but not among those that do: answers may run on."
    ),
    "EOG token id": (
        "names a token that ends an answer which is not in its vocabulary: answers may run on."
    ),
    "newline token": "has no token for the end of a line: what it reads is not quite the text.",
    "degraded": "is one that llama.cpp warns about: the quality of its answers may be degraded.",
    "training context overflow": "",  # the context's own notes say that
    "bug in the model": "",  # llama.cpp mends that by itself
}


_HANDLES = Path("/proc/self/fd")  # Linux
_CHUNK = 1 << 20


class LockedFile(Closing):
    """A model file kept open so that llama.cpp loads exactly the file that was checked.

    On Linux, llama.cpp opens it through /proc/self/fd, so that a file moved to the same name is
    never read. A file that other accounts may write could still be changed in place, even with the
    same times; llama.cpp gets a private copy, whose digest must be the checked one. Elsewhere
    llama.cpp opens the file by its name; a change is detected afterwards. Errors are ModelError.

    Args:
        path: of the file.
        stamp: of the file that was checked; None where nobody has.

    Attributes:
        place: where to open what is locked.
        sha256: of the private copy; None where the file itself is used.
        handle: the open file, for a process that inherits it.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        self.path = path
        self.sha256: str | None = None
        with readable(path):
            self.handle = os.open(path, os.O_RDONLY)
        try:
            self._stamp = stamp or stamp_of(os.fstat(self.handle))
            by_handle = _HANDLES / str(self.handle)
            self.place = by_handle if by_handle.exists() else path
            self.check()
            if self.place != path and others_may_write(os.fstat(self.handle)):
                self._copy()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises ModelError if the file was changed, truncated or replaced."""
        if self.sha256 is not None:
            return  # a copy that nobody else can reach
        try:
            found = [os.fstat(self.handle)]
            if self.place == self.path:
                found.append(os.stat(self.path))
        except OSError:
            found = []
        if not found or any(stamp_of(one) != self._stamp for one in found):
            self._refuse()

    def close(self) -> None:
        """Closes the file, which also deletes a private copy."""
        os.close(self.handle)

    def _copy(self) -> None:
        digest = hashlib.sha256()
        try:
            with (
                os.fdopen(os.dup(self.handle), "rb", buffering=0) as source,
                tempfile.TemporaryFile(buffering=0) as copy,  # has no name, so nobody finds it
            ):
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                os.dup2(copy.fileno(), self.handle, inheritable=False)
        except OSError as error:
            raise ModelError(
                f"{self.path.name} can be written by other accounts, so a private copy is loaded, "
                f"and that cannot be made: {error.strerror or 'unknown'}. Keep the file where only "
                "you can write, or make space in the folder for temporary files (TMPDIR)."
            ) from None
        self.sha256 = digest.hexdigest()
        if self._stamp.sha256 not in (None, self.sha256):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"{self.path.name} changed between its check and its loading. Nothing of it is "
            "used: see who writes to that folder, then start again."
        )


@dataclass(frozen=True, slots=True)
class Metadata:
    """Facts about a loaded model."""

    name: str  # of the file, without its folder
    architecture: str  # such as "llama"
    file_type: str  # how the weights are quantized, such as "Q4_0"
    size: int  # bytes of the weights
    context_length: int  # tokens that the model was trained for
    vocabulary_size: int  # tokens
    chat_template: str | None  # Jinja source, if the file has one
    devices: Layers  # the GPUs that layers were put on, and how many on each
    layers: int  # number of layers, with the output layer
    kernels: Kernels  # for the costs of batches

    @property
    def gpu_layers(self) -> int:
        return sum(self.devices.values())


class LoadedAdapter(NamedTuple):
    """A loaded LoRA adapter: its llama.cpp address, and messages for the user."""

    address: int
    notes: tuple[str, ...]


class Weights(Closing):
    """A loaded model file, freed when its creator and all contexts on it have closed it.

    Args:
        path: of the GGUF file.
        options: how to load it.
        progress: called with the part that is loaded, 0 to 1; may raise to stop.
        vocabulary_only: reads no tensors; such weights tokenize, but no context fits on them.
        layers: that GPUs take, if that is settled (`devices.plan`); else what fits now.
        stamps: of the files that were checked, by path; adapters too.
        encoder: whether an encoder is expected instead of a generative model.

    Attributes:
        header: of the file.
        vocabulary: all tokens.
        metadata: for people.
        notes: what llama.cpp warns about in this file that lowers the quality, a sentence each.

    Raises:
        ModelError: the file is missing, damaged, or llama.cpp refuses it (with its own words).
        MemoryShortage: it does not fit into memory.
    """

    def __init__(
        self,
        path: Path,
        options: LoadOptions | None = None,
        progress: Progress | None = None,
        *,
        vocabulary_only: bool = False,
        layers: Layers | None = None,
        stamps: Mapping[Path, Stamp] | None = None,
        encoder: bool = False,
    ) -> None:
        options = options or LoadOptions()
        self._library: Library = library()
        self._users = 1
        self._adapters: dict[Path, LoadedAdapter] = {}
        self._stamps = dict(stamps or {})
        self.handle: int | None = None
        try:
            with LockedFile(path, self._stamps.get(path)) as file:
                self.header: Header = read_header(path, file.place, encoder=encoder)
                self._refuse_unusable(path.name)
                if layers is None:
                    layers = {} if vocabulary_only else self._choose_layers(path.name, options)
                self._layers = layers
                if options.check_tensors and not vocabulary_only:
                    check_values(self._library, file, self.header)
                self.handle = self._load(file, progress, vocabulary_only)
                file.check()
            self.notes = quality_notes(path.name, self._library.warnings())
            self._vocab = ctypes.c_void_p(self._library.api.llama_model_get_vocab(self.handle))
            self._pre_tokenizer = self.header.values.get("tokenizer.ggml.pre")
            self.vocabulary: Vocabulary = read_vocabulary(self._library, self._vocab, path.name)
            self.metadata: Metadata = self._describe(path.name)
        except BaseException:
            self.close()
            raise
        number = ctypes.c_int32
        self._tokenize = self._library.function(
            "llama_tokenize",
            number, ctypes.c_void_p, ctypes.c_char_p, number, ctypes.c_void_p, number,
            ctypes.c_bool, ctypes.c_bool,
        )  # fmt: skip

    def _refuse_unusable(self, name: str) -> None:
        values = self.header.values
        if values.get("tokenizer.ggml.model") in (None, *NO_VOCABULARY):
            raise ModelError(f"{name} has no vocabulary, so it cannot read or write text.")
        if values.get("tokenizer.ggml.pre") == "whitespace":  # GGML_ASSERT in find_bpe_rank
            raise ModelError(
                f"{name}: llama.cpp ends the process when the pre-tokenizer whitespace meets two "
                "spaces. Use another model."
            )

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Tokenizes UTF-8 text; see `decoding.proxy.Model.tokenize`.

        Some pre-tokenizers use std::regex, which recurses along a match (up to 350 bytes of stack
        per byte): a long text is tokenized in a thread with a stack large enough for one match.

        Raises:
            ValueError: `text` is not UTF-8, with which llama.cpp might abort the process.
            TextTooLong: more than `LONGEST_RUN` bytes.
            ModelError: the model has been closed.
        """
        self.check_open()
        characters = text.decode("utf-8")
        if len(text) <= _ON_OWN_STACK:
            return self._split(text, special)
        if len(text) > LONGEST_RUN:
            raise TextTooLong(len(text), LONGEST_RUN)
        if self._pre_tokenizer in _QUADRATIC:
            run, limit = _QUADRATIC[str(self._pre_tokenizer)]
            longest = max(map(len, run.findall(characters)), default=0)
            if longest > limit:
                raise TextTooLong(longest, limit)
        # It waits also where it is interrupted: native code still uses the vocabulary.
        with ThreadPoolExecutor(1) as pool:
            with _STACK_SIZE:
                before = threading.stack_size((1 << 20) + _STACK_PER_BYTE * len(text))
                try:
                    found = pool.submit(self._split, text, special)
                except RuntimeError:  # no thread with such a stack
                    raise TextTooLong(len(text), _ON_OWN_STACK) from None
                finally:
                    threading.stack_size(before)
            return found.result()

    def _split(self, text: bytes, special: bool) -> list[int]:
        space = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * space)()
            count = self._tokenize(self._vocab, text, len(text), buffer, space, False, special)
            if count >= 0:
                return buffer[:count]
            if count == -(1 << 31) or -count <= space:
                raise ValueError("llama.cpp cannot split a text of this length")
            space = -count

    def adapter(self, path: Path) -> LoadedAdapter:
        """Loads a LoRA adapter for these weights, once; it is freed with them.

        Raises:
            ModelError: the file is missing, damaged, or does not fit.
        """
        place, name = path.resolve(), self.metadata.name
        if place in self._adapters:
            return self._adapters[place]
        address = ctypes.c_void_p
        load = self._library.function("llama_adapter_lora_init", address, address, ctypes.c_char_p)
        with LockedFile(path, self._stamps.get(path)) as file:
            notes = check_adapter(path, self.header, name, file.place)
            self._library.forget_errors()
            found = load(self.handle, bytes(file.place))
            if not found:
                reason = self._library.last_error().replace(str(file.place), path.name)
                raise adapter_error(path, name, reason or "llama.cpp gives no reason")
            file.check()
        self._adapters[place] = LoadedAdapter(int(found), notes)
        return self._adapters[place]

    def retain(self) -> Self:
        """Increments the reference count; each call needs a `close`."""
        self.check_open()
        self._users += 1
        return self

    def check_open(self) -> None:
        """Raises ModelError if the weights have been freed."""
        if self.handle is None:
            raise ModelError(f"{self.metadata.name} has been closed.")

    def close(self) -> None:
        """Decrements the reference count; at 0 the memory is freed."""
        self._users -= 1
        if self._users == 0 and self.handle is not None:
            self._library.api.llama_model_free(self.handle)
            self.handle = None

    def _choose_layers(self, name: str, options: LoadOptions) -> Layers:
        """Plans layers on GPUs; raises MemoryShortage if the rest does not fit into memory."""
        needed = estimate(self.header, options)
        layers = plan({name: needed}, {name: options}, self._library.devices())[name]
        check_fits({name: needed.without_gpu_layers(sum(layers.values()))})
        return layers

    def _load(
        self,
        file: LockedFile,
        progress: Progress | None,
        vocabulary_only: bool,
    ) -> int:
        path, api = file.path, self._library.api
        parameters = api.llama_model_default_params()
        # Only the planned GPUs: without layers, no GPU is used for anything.
        find = self._library.function("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
        gpus = [find(gpu.encode()) for gpu in self._layers]
        devices = (ctypes.c_void_p * (len(gpus) + 1))(*gpus, None)
        split = (ctypes.c_float * max(len(gpus), api.llama_max_devices()))(*self._layers.values())
        parameters.devices, parameters.tensor_split = ctypes.addressof(devices), split
        parameters.n_gpu_layers = sum(self._layers.values())
        parameters.vocab_only = vocabulary_only
        parameters.load_mode = api.LLAMA_LOAD_MODE_NONE  # no map, which would follow the file
        raised: list[BaseException] = []
        self._library.forget_errors()
        with DeferredInterrupts() as interrupts:

            def on_progress(fraction: float, _data: object) -> bool:
                try:
                    if progress is not None:
                        progress(fraction)
                except BaseException as error:  # an exception cannot leave a C callback
                    raised.append(error)
                return not raised and not interrupts.requested

            callback = api.llama_progress_callback(on_progress)
            parameters.progress_callback = callback
            handle = api.llama_model_load_from_file(bytes(file.place), parameters)
        if raised:
            api.llama_model_free(handle)
            raise raised[0]
        if interrupts.requested:
            api.llama_model_free(handle)
            raise Cancelled(f"Loading {path.name} was stopped.")
        if not handle:
            reason = self._library.last_error().replace(str(file.place), path.name)
            if "unknown pre-tokenizer type" in reason:
                reason += (
                    ", which this llama.cpp does not know; use another conversion of the model"
                )
            kind = MemoryShortage if "alloc" in reason or "out of memory" in reason else ModelError
            raise kind(f"{path.name} cannot be loaded: {reason or 'llama.cpp gives no reason'}.")
        return int(handle)

    def _describe(self, name: str) -> Metadata:
        api = self._library.api
        template = api.llama_model_chat_template(self.handle, None)
        # With vocab_only llama.cpp reports F32, so the type is read from the header.
        declared = self.header.values.get("general.file_type")
        known = isinstance(declared, int)
        number = declared if known else api.llama_model_ftype(self.handle)
        file_type = (api.llama_ftype_name(number) or b"").decode("utf-8", "replace")
        on_cpu, tiles = not self._layers, self._library.formats.tiles
        rearranged = on_cpu and file_type.startswith(_BY_FOURS)
        return Metadata(
            name=name,
            architecture=self.header.architecture,
            file_type=file_type,
            size=int(api.llama_model_size(self.handle)),
            context_length=self.header.number("context_length"),
            vocabulary_size=len(self.vocabulary),
            chat_template=template.decode("utf-8", "replace") if template else None,
            devices=self._layers,
            layers=self.header.number("block_count") + 1,
            kernels=Kernels(rearranged and not tiles, not on_cpu, on_cpu and tiles),
        )


def check_values(library: Library, file: LockedFile, header: Header) -> None:
    """Checks all tensors of a file for NaN, infinities and invalid blocks.

    llama.cpp can do this itself (`check_tensors`), but it starts a thread per tensor, and the
    stacks of some hundred threads take more memory than the model.

    Raises:
        ModelError: a tensor has invalid data, or the file cannot be read.
    """
    valid = library.function(
        "ggml_validate_row_data", ctypes.c_bool, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    )
    types = tensor_types()
    buffer = np.empty(_CHECKED_AT_ONCE, np.uint8)
    with readable(file.path), file.place.open("rb", buffering=0) as stream:
        for tensor in header.tensors:
            stream.seek(tensor.place)
            block, left = types[tensor.kind][1], tensor.size
            while left:
                wanted = min(left, _CHECKED_AT_ONCE // block * block)
                _read_into(stream, buffer[:wanted])
                if not valid(tensor.kind, buffer.ctypes.data, wanted):
                    raise ModelError(
                        f"{file.path.name} is damaged: a tensor has invalid data (a weight that "
                        "is not a finite number). Get the file again."
                    )
                left -= wanted


def _read_into(stream: RawIOBase, part: npt.NDArray[np.uint8]) -> None:
    view, done = memoryview(part.data), 0
    while done < len(part):
        count = stream.readinto(view[done:])
        if not count:
            raise OSError(0, "it was cut off while it was read")
        done += count


def quality_notes(name: str, warnings: Iterable[str]) -> tuple[str, ...]:
    """Messages for the user from llama.cpp's warnings about a file, each once."""
    found: dict[str, None] = {}
    for line in warnings:
        for mark, meaning in _QUALITY.items():
            if mark.lower() in line.lower():
                if meaning:
                    found[f"{name} {meaning}"] = None
                break
    return tuple(found)


# --- the vocabulary ------------------------------------------------------------------------------

# llama.cpp's attribute bit of each kind, in order of precedence: a token that it detects as a
# marker has the file's kind beside CONTROL. Higher bits say how a token treats whitespace.
_KIND_BITS = (
    (1 << 3, TokenKind.CONTROL),
    (1 << 4, TokenKind.USER_DEFINED),
    (1 << 5, TokenKind.BYTE),
    (1 << 0, TokenKind.UNKNOWN),
    (1 << 1, TokenKind.UNUSED),
    (1 << 2, TokenKind.NORMAL),
)
_KIND_MASK = (1 << 6) - 1
_KINDS = np.array(
    [
        next((kind for bit, kind in _KIND_BITS if bits & bit), TokenKind.UNDEFINED)
        for bits in range(_KIND_MASK + 1)
    ],
    np.uint8,
)
_SLOT = 64  # bytes; a few hundred tokens of a vocabulary are longer


def read_vocabulary(library: Library, vocab: ctypes.c_void_p, name: str) -> Vocabulary:
    """Reads a `llama_vocab`.

    Raises:
        ModelError: llama.cpp cannot spell one of its tokens; the message has the file's `name`.
    """
    api = library.api
    count = api.llama_vocab_n_tokens(vocab)
    address, number = ctypes.c_void_p, ctypes.c_int32
    attributes = library.function("llama_vocab_get_attr", ctypes.c_int, address, number)
    is_end = library.function("llama_vocab_is_eog", ctypes.c_bool, address, number)
    everywhere, tokens = repeat(vocab), range(count)
    bits = np.fromiter(map(attributes, everywhere, tokens), np.int32, count) & _KIND_MASK
    ends = np.fromiter(map(is_end, everywhere, tokens), np.bool_, count)
    bos = api.llama_vocab_bos(vocab)
    eos = api.llama_vocab_eos(vocab)
    return Vocabulary(
        _pieces(library, vocab, count, name),
        _KINDS[bits],
        end_ids=np.flatnonzero(ends).tolist(),
        bos=bos if bos >= 0 else None,
        add_bos=bool(api.llama_vocab_get_add_bos(vocab)),
        eos=eos if eos >= 0 else None,
    )


def _pieces(library: Library, vocab: ctypes.c_void_p, count: int, name: str) -> list[bytes]:
    """The bytes of all tokens, read into slots of one buffer; longer ones again one by one."""
    number, address = ctypes.c_int32, ctypes.c_void_p
    spell = library.function(
        "llama_token_to_piece", number, address, number, address, number, number, ctypes.c_bool
    )
    slots = ctypes.create_string_buffer(_SLOT * count)
    first = ctypes.addressof(slots)
    places = range(first, first + _SLOT * count, _SLOT)
    same = (repeat(_SLOT), repeat(0), repeat(True))
    lengths = list(map(spell, repeat(vocab), range(count), places, *same))
    raw = slots.raw
    pieces = [
        raw[at : at + size] for at, size in zip(range(0, len(raw), _SLOT), lengths, strict=True)
    ]
    for token in np.flatnonzero(np.array(lengths) < 0).tolist():
        size = -lengths[token]  # a slot was too short; this is the size needed
        buffer = ctypes.create_string_buffer(size)
        if spell(vocab, token, ctypes.addressof(buffer), size, 0, True) != size:
            raise ModelError(f"{name}: llama.cpp cannot spell token {token} of the vocabulary.")
        pieces[token] = buffer.raw
    return pieces
