"""The binding's own `Llama`, to compare with: one model, greedy, nothing of ours around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capt_local.errors import ModelError
from capt_local.llama.library import Closing, library
from capt_local.llama.memory import check_fits, estimate
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.llama.threads import physical_cores

_ON_CPU = 0


class PlainLlama(Closing):
    """A second copy of a model, loaded and run by llama-cpp-python itself.

    Args:
        path: of the file.
        model: ours of the same file; it stays as it is.
        options: with which that was loaded. Context, threads and layers on a GPU are the same.

    Raises:
        MemoryShortage: there is no room for a second copy.
        ModelError: the binding cannot load the file.
    """

    def __init__(self, path: Path, model: LlamaModel, options: LoadOptions) -> None:
        """Loads the file."""
        library()  # checks the binding's version, and starts llama.cpp as for our own models
        import llama_cpp

        on_gpu = model.metadata.gpu_layers
        options = replace(options, context=model.context_limit)
        if on_gpu == _ON_CPU:
            check_fits({"a second copy of the target": estimate(model.weights.header, options)})
        threads, batch = options.threads or physical_cores(), options.batch_size(on_gpu > 0)
        try:
            self._llama: Any = llama_cpp.Llama(
                str(path),
                n_ctx=model.context_limit,
                n_batch=batch,
                n_ubatch=batch,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=on_gpu,
                flash_attn=options.flash(on_gpu > 0) != "off",
                use_mmap=options.map_file,
                verbose=False,
            )
        except (ValueError, RuntimeError):  # its message names the file
            raise ModelError("llama-cpp-python itself cannot load the target.") from None

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """The greedy continuation of a prompt, without an end; forgets what came before.

        The first token takes the time of the prompt. The prompt and the answer have to fit.
        """
        self._llama.reset()
        found: Iterator[int] = self._llama.generate(
            list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0
        )
        return found

    def close(self) -> None:
        """Frees the copy."""
        self._llama.close()
