"""A BERT-like encoder: a text to one vector, in llama.cpp's embedding mode."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capt_local.errors import MemoryShortage, ModelError, NumericalError, UsageError
from capt_local.llama.context import Batch
from capt_local.llama.gguf_header import Header, read_header
from capt_local.llama.library import Closing, library
from capt_local.llama.memory import available_memory
from capt_local.llama.weights import LockedFile, check_values
from capt_local.strict_json import Stamp

_POOLINGS = (1, 2, 3)  # mean, first token, last token: one vector a text
_LARGEST = 2 << 30  # bytes of a file; an encoder of BERT's size has 0.4 GB in F32
_LONGEST = 1 << 13  # tokens; llama.cpp computes attention of a text at once


class Encoder(Closing):
    """One loaded encoder, and the stamp of its file if that was checked. Not for two threads.

    Attributes:
        name: of the file.
        width: numbers of a vector.
        limit: tokens of a text, with the two that stand around it.

    Raises:
        ModelError: the file is missing, damaged, no encoder, or one without pooling.
        MemoryShortage: it does not fit into memory.
    """

    def __init__(self, path: Path, threads: int = 1, stamp: Stamp | None = None) -> None:
        self.name = path.name
        self._library = library()
        self._model: Any = None
        self._context: Any = None
        api = self._library.api
        try:
            with LockedFile(path, stamp) as file:
                header = read_header(path, file.place, encoder=True)
                self._check_header(header)
                check_values(self._library, file, header)
                parameters = api.llama_model_default_params()
                parameters.n_gpu_layers = 0
                parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
                self._library.forget_errors()
                self._model = api.llama_model_load_from_file(bytes(file.place), parameters)
                file.check()
            if not self._model:
                raise self._refused()
            self._open_context(threads)
        except BaseException:
            self.close()
            raise

    def _check_header(self, header: Header) -> None:
        if header.number("pooling_type") not in _POOLINGS:
            raise ModelError(
                f"{self.name} does not say how it makes one vector of a text (pooling_type), so it "
                "cannot score answers. Use an encoder that was converted for embeddings."
            )
        if header.file_size > min(_LARGEST, available_memory()):
            raise MemoryShortage(f"{self.name}: the scorer does not fit into memory.")
        self.width = header.number("embedding_length")
        self.limit = min(header.number("context_length"), _LONGEST)

    def _open_context(self, threads: int) -> None:
        api = self._library.api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.limit
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.embeddings = True
        parameters.no_perf = True
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise self._refused()
        self._vocab = ctypes.c_void_p(api.llama_model_get_vocab(self._model))
        self._first = int(api.llama_vocab_bos(self._vocab))
        self._last = int(api.llama_vocab_sep(self._vocab))
        if self._first < 0 or self._last < 0:
            raise ModelError(f"{self.name} has no tokens that stand around a text.")
        self._batch = Batch(api, self.limit)

    def _refused(self) -> ModelError:
        reason = self._library.last_error() or "llama.cpp gives no reason"
        return ModelError(f"{self.name} cannot be loaded as an encoder: {reason}.")

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without those that stand around it."""
        data = text.encode("utf-8", "replace")
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = self._library.api.llama_tokenize(
            self._vocab, data, len(data), buffer, len(buffer), False, False
        )
        if count < 0:
            raise UsageError("An answer or its question is too long for the scorer.")
        return buffer[:count]

    def vector(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The pooled vector, shape (width,), of at most `limit` - 2 tokens; two are added.

        Raises:
            NumericalError: it holds NaN or infinities.
        """
        api = self._library.api
        whole = [self._first, *tokens, self._last]
        self._batch.fill(whole, 0, len(whole))
        if code := api.llama_encode(self._context, self._batch.raw):
            raise ModelError(f"{self.name}: llama.cpp could not compute a text (code {code}).")
        values = api.llama_get_embeddings_seq(self._context, 0)
        found: npt.NDArray[np.float32] = np.ctypeslib.as_array(values, (self.width,)).copy()
        if not np.isfinite(found).all():
            raise NumericalError(f"{self.name} gives numbers that are not finite.")
        return found

    def close(self) -> None:
        api = self._library.api
        if self._context:
            api.llama_free(self._context)
        if self._model:
            api.llama_model_free(self._model)
        self._context = self._model = None
