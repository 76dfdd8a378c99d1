"""The weights of one GGUF file: loaded once, shared by any number of contexts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from capt_local.engine.adapters import LoadedAdapter, check_adapter, load_adapter
from capt_local.engine.closing import Closing
from capt_local.engine.extract import read_vocabulary
from capt_local.engine.header import Header, read_header
from capt_local.engine.held import HeldFile
from capt_local.engine.interrupts import HeldInterrupts
from capt_local.engine.kernels import Kernels
from capt_local.engine.library import Library, library
from capt_local.engine.memory import check_fits, estimate
from capt_local.engine.options import LoadOptions
from capt_local.engine.placement import free_on_gpus
from capt_local.engine.suited import refuse_other_kinds
from capt_local.errors import Cancelled, MemoryShortage, ModelError, UsageError
from capt_local.strict.stamp import Stamp
from capt_local.vocab.vocabulary import Vocabulary

Progress = Callable[[float], None]

# Formats that llama.cpp rearranges for kernels which take four tokens at once: two or three cost
# more than four, as each of them is computed by itself.
_BY_FOURS = ("Q4_0", "Q4_K", "IQ4_NL")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a model says about itself.

    Attributes:
        name: of the file, without its folder.
        title: the model's own name, if it has one.
        architecture: such as "llama".
        description: llama.cpp's summary of size and format.
        file_type: how the weights are quantized, such as "Q4_0".
        parameters: number of weights.
        size: bytes of the weights.
        context_length: tokens that the model was trained for.
        vocabulary_size: tokens.
        chat_template: Jinja source, if the file has one.
        gpu_layers: layers that were put on a GPU.
        layers: layers in all, the output being one.
        kernels: that compute batches of its tokens.
    """

    name: str
    title: str
    architecture: str
    description: str
    file_type: str
    parameters: int
    size: int
    context_length: int
    vocabulary_size: int
    chat_template: str | None
    gpu_layers: int
    layers: int
    kernels: Kernels


class Weights(Closing):
    """A loaded model file. Closed when its maker and every context on it have let go.

    Args:
        path: of the GGUF file.
        options: how to load it.
        progress: called with the part that is loaded, 0 to 1; may raise to stop.
        vocabulary_only: reads no tensors; such weights tokenize, but no context fits on them.
        contexts: how many will be made on them, so that there is room for all.
        stamps: of the files that were checked, by path; adapters too.

    Attributes:
        header: of the file.
        vocabulary: all tokens.
        metadata: for people.

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
        contexts: int = 1,
        stamps: Mapping[Path, Stamp] | None = None,
    ) -> None:
        """Checks the header, then the memory, then loads."""
        options = options or LoadOptions()
        self._library: Library = library()
        self._users = 1
        self._adapters: dict[Path, LoadedAdapter] = {}
        self._stamps = dict(stamps or {})
        self.handle: int | None = None
        try:
            with HeldFile(path, self._stamps.get(path)) as held:
                self.header: Header = read_header(path, held.place)
                self._layers = (
                    0 if vocabulary_only else self._choose_layers(path.name, options, contexts)
                )
                self.handle = self._load(held, options, progress, vocabulary_only)
                held.check()
            self._examine(path.name)
        except BaseException:
            self.close()
            raise
        number = ctypes.c_int32
        self._tokenize = self._library.function(
            "llama_tokenize",
            number, ctypes.c_void_p, ctypes.c_char_p, number, ctypes.c_void_p, number,
            ctypes.c_bool, ctypes.c_bool,
        )  # fmt: skip

    def _examine(self, name: str) -> None:
        library = self._library
        self._vocab = ctypes.c_void_p(library.api.llama_model_get_vocab(self.handle))
        refuse_other_kinds(library, self.handle, self._vocab, name, self.header.architecture)
        self.vocabulary: Vocabulary = read_vocabulary(library, self._vocab.value or 0, name)
        self.metadata: Metadata = self._describe(name)

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text; see `decode.model.Model.tokenize`.

        Raises:
            ValueError: `text` is not UTF-8; llama.cpp would end the process over some such text.
        """
        text.decode("utf-8")
        room = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._tokenize(self._vocab, text, len(text), buffer, room, False, special)
            if count >= 0:
                return buffer[:count]
            if count == -(1 << 31) or -count <= room:
                raise ValueError("llama.cpp cannot split a text of this length")
            room = -count

    def value(self, key: str) -> str | None:
        """A value of the file's metadata as text, None if there is none or it is a list."""
        api = self._library.api
        name = key.encode()
        length = api.llama_model_meta_val_str(self.handle, name, None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        api.llama_model_meta_val_str(self.handle, name, buffer, length + 1)
        return buffer.raw[:length].decode("utf-8", "replace")

    def adapter(self, path: Path) -> LoadedAdapter:
        """A LoRA adapter of these weights: loaded once, freed with them.

        Raises:
            ModelError: the file is missing, damaged, or does not fit.
        """
        place = path.resolve()
        if place not in self._adapters:
            name = self.metadata.name
            notes = check_adapter(path, self.header, name)
            with HeldFile(path, self._stamps.get(path)) as held:
                address = load_adapter(self._library, self.handle, name, path, held.place)
                held.check()
            self._adapters[place] = LoadedAdapter(address, notes)
        return self._adapters[place]

    def retain(self) -> Self:
        """Counts one more user."""
        if self.handle is None:
            raise ValueError("these weights are closed")
        self._users += 1
        return self

    def close(self) -> None:
        """Lets go; the last user frees the memory."""
        self._users -= 1
        if self._users == 0 and self.handle is not None:
            self._library.api.llama_model_free(self.handle)
            self.handle = None

    def _choose_layers(self, name: str, options: LoadOptions, contexts: int) -> int:
        """Layers for the GPU; also refuses what does not fit into memory."""
        needed = estimate(self.header, options).with_contexts(contexts)
        gpus = [device for device in self._library.devices() if device.is_gpu]
        if options.gpu_layers == "all":
            layers = needed.layers
        elif options.gpu_layers == "auto":
            layers = needed.layers_that_fit(free_on_gpus(gpus))
        else:
            layers = options.gpu_layers
        if not gpus:
            if options.gpu_layers != "auto" and layers:
                raise UsageError(
                    f"--gpu-layers {options.gpu_layers} was asked for, but this build of llama.cpp "
                    "sees no GPU. Use --gpu-layers 0 or auto."
                )
            layers = 0
        layers = min(layers, needed.layers)
        check_fits({name: needed.beside_gpu(layers)})
        return layers

    def _load(
        self, held: HeldFile, options: LoadOptions, progress: Progress | None, vocabulary_only: bool
    ) -> int:
        path = held.path
        api = self._library.api
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = self._layers
        parameters.vocab_only = vocabulary_only
        parameters.check_tensors = options.check_tensors
        parameters.load_mode = (
            api.LLAMA_LOAD_MODE_MMAP if options.map_file else api.LLAMA_LOAD_MODE_NONE
        )
        raised: list[BaseException] = []
        self._library.forget_errors()
        with HeldInterrupts() as interrupts:

            def tell(fraction: float, _data: object) -> bool:
                try:
                    if progress is not None:
                        progress(fraction)
                except BaseException as error:  # an exception cannot leave a C callback
                    raised.append(error)
                return not raised and not interrupts.asked

            callback = api.llama_progress_callback(tell)
            parameters.progress_callback = callback
            handle = api.llama_model_load_from_file(bytes(held.place), parameters)
        if raised:
            api.llama_model_free(handle)
            raise raised[0]
        if interrupts.asked:
            api.llama_model_free(handle)
            raise Cancelled(f"Loading {path.name} was stopped.")
        if not handle:
            said = self._library.last_error().replace(str(held.place), path.name)
            kind = MemoryShortage if "alloc" in said or "out of memory" in said else ModelError
            raise kind(f"{path.name} cannot be loaded: {said or 'llama.cpp gives no reason'}.")
        return int(handle)

    def _describe(self, name: str) -> Metadata:
        api = self._library.api
        summary = ctypes.create_string_buffer(256)
        api.llama_model_desc(self.handle, summary, len(summary))
        template = api.llama_model_chat_template(self.handle, None)
        # Loaded for its vocabulary alone, a model calls itself F32: the file itself knows better.
        declared = self.header.values.get("general.file_type")
        known = isinstance(declared, int)
        number = declared if known else api.llama_model_ftype(self.handle)
        file_type = (api.llama_ftype_name(number) or b"").decode("utf-8", "replace")
        on_cpu, tiles = not self._layers, self._library.tiles
        rearranged = on_cpu and file_type.startswith(_BY_FOURS)
        return Metadata(
            name=name,
            title=self.value("general.name") or "",
            architecture=self.header.architecture,
            description=summary.value.decode("utf-8", "replace"),
            file_type=file_type,
            parameters=int(api.llama_model_n_params(self.handle)),
            size=int(api.llama_model_size(self.handle)),
            context_length=self.header.number("context_length"),
            vocabulary_size=len(self.vocabulary),
            chat_template=template.decode("utf-8", "replace") if template else None,
            gpu_layers=self._layers,
            layers=self.header.number("block_count") + 1,
            kernels=Kernels(rearranged and not tiles, not on_cpu, on_cpu and tiles),
        )
