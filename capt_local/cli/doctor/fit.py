"""What a run of a bundle takes in memory, before any of it is loaded, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capt_local.cli.mebibytes import mebibytes
from capt_local.engine import memory
from capt_local.engine.library import library
from capt_local.engine.placement import free_on_gpus, planned_layers
from capt_local.engine.several import estimates
from capt_local.errors import MemoryShortage

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle
    from capt_local.engine.options import LoadOptions

# While the evidence of a prompt is read, each of its positions keeps what all models say about the
# target's plausible tokens. Bytes of one token at one position, and how many tokens are that at
# most in practice: measured, see "What doctor estimates" in docs/results.md.
_BYTES_OF_A_CANDIDATE = 96
_CANDIDATES = 8192


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes of a whole run.

    Attributes:
        models: by role; weights that several share are counted with the first.
        program: Python, its libraries and llama.cpp: what this process holds now, with no model.
        reading: what reading the prompt for its evidence takes at most.
        available: main memory that is free now, with the program already there.
        on_gpu: layers that go to a GPU, by role.
        gpu: bytes free on GPUs.
    """

    models: Mapping[str, memory.MemoryEstimate]
    program: int
    reading: int
    available: int
    on_gpu: Mapping[str, int]
    gpu: int

    @property
    def needed(self) -> int:
        """The peak of the whole process in main memory and on GPUs."""
        return self.program + self.reading + sum(one.total for one in self.models.values())

    @property
    def to_come(self) -> int:
        """The part of it that still has to be found in main memory."""
        placed = (one.beside_gpu(self.on_gpu[role]) for role, one in self.models.items())
        return self.reading + sum(one.total for one in placed)

    @property
    def fits(self) -> bool:
        """Whether main memory takes its part."""
        return self.to_come <= self.available

    def check(self) -> None:
        """Refuses what does not fit.

        Raises:
            MemoryShortage: with the estimate of each role and what is there.
        """
        if self.fits:
            return
        each = ", ".join(f"{role} {mebibytes(one.total)}" for role, one in self.models.items())
        raise MemoryShortage(
            f"Not enough memory: {mebibytes(self.to_come)} are needed beside the program, "
            f"{mebibytes(self.available)} are free. {each}, reading a prompt "
            f"{mebibytes(self.reading)}. Use a smaller --ctx-size, smaller models, or more GPU "
            "layers."
        )


def fit(bundle: Bundle, options: LoadOptions) -> Fit:
    """What running a bundle takes here and now.

    Raises:
        ModelError: a file is not a GGUF that can be read.
    """
    import psutil

    paths = {role: model.path for role, model in bundle.models.items()}
    each = estimates(paths, options, bundle.adapters)
    gpu = free_on_gpus(library().devices())
    return Fit(
        models=each,
        program=int(psutil.Process().memory_info().rss),
        reading=_reading(bundle),
        available=memory.available_memory(),
        on_gpu=planned_layers(each, options, gpu),
        gpu=gpu,
    )


def _reading(bundle: Bundle) -> int:
    """Bytes that the evidence of a prompt takes while it is read; none where nothing is weighed."""
    from capt_local.decode.options import CombineOptions

    if len(bundle.models) == 1 or bundle.defaults.alphas:
        return 0
    return CombineOptions().evidence_tokens * _CANDIDATES * _BYTES_OF_A_CANDIDATE
