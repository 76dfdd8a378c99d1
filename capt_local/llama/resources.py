"""Memory and threads: what a model needs, and what this machine has.

Memory is estimated conservatively from the header of a file. Threads are as many as physical cores,
less those busy with other processes: llama.cpp's threads synchronise several hundred times per
token, so with more threads than free cores a token takes many times as long as with one thread.
The load of other processes is measured twice a second, and each context adapts its threads; without
flash attention the result does not depend on their number. Waiting threads spin for a short time
only, if that can be set (OpenMP).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil

from capt_local.errors import MemoryShortage
from capt_local.llama.gguf_header import Header, read_header
from capt_local.llama.options import LoadOptions

DEFAULT_CONTEXT = 4096

CONTEXT_UNIT = 256  # llama.cpp pads a context to a multiple of this
SEQUENCES = 2  # of one context: the running one, and a copy of it for `peek`
_KV_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
_GRAPH_BYTES = 8 << 20  # descriptions of the computation and of the vocabulary
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")  # of the name of a tensor
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory that a loaded model takes, in bytes."""

    weights: int  # the tensors, as they lie in the file
    kv_cache: int  # of the whole context, or the state of a recurrent model
    buffers: int  # logits and intermediate results of a batch
    movable: tuple[int, ...] = ()  # weights per layer that can go to a GPU, the output layer last
    adapters: int = 0  # LoRA adapters beside the weights

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.kv_cache + self.buffers

    @property
    def layers(self) -> int:
        """Number of layers, with the output layer."""
        return len(self.movable)

    @classmethod
    def together(cls, several: Sequence[MemoryEstimate]) -> MemoryEstimate:
        """The sum for contexts on the same weights, which only the first estimate counts."""
        return cls(
            weights=several[0].weights,
            kv_cache=sum(one.kv_cache for one in several),
            buffers=sum(one.buffers for one in several),
            movable=several[0].movable,
            adapters=sum(one.adapters for one in several),
        )

    def layer_bytes(self) -> list[int]:
        """Bytes of each layer with its part of the KV cache and of adapters."""
        each = -(-(self.kv_cache + self.adapters) // max(1, self.layers - 1))
        return [*(size + each for size in self.movable[:-1]), *self.movable[-1:]]

    def on_gpus(self, layers: Mapping[str, int]) -> dict[str, int]:
        """Bytes on each GPU with these numbers of layers: the last ones, in order."""
        sizes, at = self.layer_bytes(), self.layers - sum(layers.values())
        found = {}
        for name, count in layers.items():
            found[name] = sum(sizes[at : at + count]) + self.buffers
            at += count
        return found

    def without_gpu_layers(self, layers: int) -> MemoryEstimate:
        """The estimate of main memory with the last `layers` layers on GPUs."""
        left = self.layers - layers
        share = min(1.0, left / max(1, self.layers - 1)) if layers else 1.0
        return replace(
            self,
            weights=self.weights - sum(self.movable[left:]),
            kv_cache=int(self.kv_cache * share),
            movable=self.movable[:left],
            adapters=int(self.adapters * share),
        )


def context_size(header: Header, options: LoadOptions) -> int:
    """The context size in tokens: as requested, or the default for this model."""
    if options.context is not None:
        return options.context
    trained = header.number("context_length", DEFAULT_CONTEXT)
    return min(trained, DEFAULT_CONTEXT)


def estimate(header: Header, options: LoadOptions) -> MemoryEstimate:
    """The memory of a model with these options. Raises ModelError if an adapter is damaged."""
    sizes = {tensor.name: tensor.size for tensor in header.tensors}
    layers = [0] * (header.number("block_count") + 1)
    for name, size in sizes.items():
        if name.startswith("output"):
            layers[-1] += size
        elif found := _BLOCK.match(name):
            layers[min(int(found[1]), len(layers) - 1)] += size
    # A matrix shared by input embedding and output is in memory twice: in plain order for the one,
    # repacked for the other.
    again = sizes.get("token_embd.weight", 0) if "output.weight" not in sizes else 0
    state = header.number("ssm.state_size") + max(header.number("ssm.conv_kernel") - 1, 0)
    recurrent = 4 * (len(layers) - 1) * SEQUENCES * header.number("ssm.inner_size") * state
    return MemoryEstimate(
        weights=sum(sizes.values()) + again,
        kv_cache=_kv_cache(header, options) + recurrent,
        buffers=_buffers(header, options),
        movable=(*layers[:-1], layers[-1] + again),
        adapters=sum(
            tensor.size
            for path in {one.path for one in options.adapters}
            for tensor in read_header(path).tensors
        ),
    )


def check_fits(estimates: Mapping[str, MemoryEstimate], available: int | None = None) -> None:
    """Raises MemoryShortage if models (by role) need more memory than is available."""
    there = available_memory() if available is None else available
    needed = sum(one.total for one in estimates.values())
    if needed <= there:
        return
    each = ", ".join(
        f"{role} {_mib(one.total)} (weights {_mib(one.weights)}, "
        + (f"adapter {_mib(one.adapters)}, " if one.adapters else "")
        + f"KV cache {_mib(one.kv_cache)})"
        for role, one in estimates.items()
    )
    raise MemoryShortage(
        f"Not enough memory: {_mib(needed)} are needed, {_mib(there)} are free. {each}. Use a "
        "smaller --ctx-size, smaller models, or more GPU layers."
    )


def available_memory() -> int:
    """Bytes that this process may still allocate: by the machine, or by its control groups."""
    free = int(psutil.virtual_memory().available)
    return min(
        [
            free,
            *(
                room
                for group in control_groups()
                if (room := _cgroup_memory_left(group)) is not None
            ),
        ]
    )


def _cgroup_memory_left(group: Path) -> int | None:
    """Bytes left of the memory limit of a control group (Linux, cgroup v2)."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        counts = dict(
            line.split() for line in (group / "memory.stat").read_text().splitlines() if line
        )
    except (OSError, ValueError):
        return None  # no such group, or no limit ("max")
    # Cached file pages count as used, but are reclaimed when memory is short.
    return max(0, limit - used + int(counts.get("inactive_file", 0)))


def _kv_cache(header: Header, options: LoadOptions) -> int:
    layers, heads = header.number("block_count"), header.number("attention.head_count", 1)
    if not layers or not heads:
        return 0
    width = header.number("embedding_length") // heads
    key = header.number("attention.key_length", width)
    value = header.number("attention.value_length", width)
    name = f"{header.architecture}.attention.head_count_kv"
    per_layer = header.arrays.get(name, (header.number("attention.head_count_kv", heads),) * layers)
    cells = -(-context_size(header, options) // CONTEXT_UNIT) * CONTEXT_UNIT
    numbers = sum(int(count) for count in per_layer) * (key + value) * cells
    return int(numbers * _KV_BYTES[options.kv_type])


def _buffers(header: Header, options: LoadOptions) -> int:
    vocabulary = header.lengths.get("tokenizer.ggml.tokens", 0)
    logits = 2 * 4 * (options.max_rows + 1) * vocabulary  # computed, and copied for the reader
    width, inner = header.number("embedding_length"), header.number("feed_forward_length")
    heads = header.number("attention.head_count", 1)
    scores = context_size(header, options) * (heads + 2)
    batch = options.batch_size(on_gpu=False)
    return logits + 4 * batch * (6 * width + 3 * inner + scores) + _GRAPH_BYTES


def _mib(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB"


# --- threads --------------------------------------------------------------------------------------

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_INTERVAL = 0.5  # seconds between two measurements
_SHORTEST = 0.05  # shortest interval to measure, in seconds; the system counts in units of 0.01
_SLACK = 0.35  # load of other processes, in cores, that does not yet cost a thread
_SPINS = "30000"  # iterations that a waiting thread spins before it sleeps; default 300,000


def limit_spinning() -> None:
    """Lets waiting threads of OpenMP sleep soon, if the environment says nothing about it."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def physical_cores() -> int:
    """Physical cores that this process may use; more threads would not be faster."""
    usable = min(len(_usable_cpus()), _quota())
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def control_groups() -> Iterator[Path]:
    """The folders of the control groups that this process is in, innermost first (cgroup v2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = _CONTROL_GROUPS / own.lstrip("/")
    while folder != _CONTROL_GROUPS.parent:
        yield folder
        folder = folder.parent


@cache
def _quota() -> int:
    """CPU quota of this process's control groups, in cores; very many without one."""
    found = [1 << 20]
    for folder in control_groups():
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(max(1, int(quota) // int(period)))
    return min(found)


class BusyCores:
    """Measures the CPU load of other processes.

    Attributes:
        cores: logical processors that this process may use.
        others: number of them used by other processes in the last interval; 0 at first.
    """

    def __init__(self) -> None:
        self._usable = _usable_cpus()
        self.cores = len(self._usable)
        self.others = 0.0
        self._last = self._sample()

    def threads(self) -> int:
        """Number of threads with a free core each: at least one, at most the physical cores."""
        if time.monotonic() - self._last[0] >= _SHORTEST:
            before, self._last = self._last, self._sample()
            clock, busy, own = (now - then for now, then in zip(self._last, before, strict=True))
            self.others = min(float(self.cores), max(0.0, (busy - own) / clock))
        return max(1, min(physical_cores(), int(self.cores - self.others + _SLACK)))

    def _sample(self) -> tuple[float, float, float]:
        """Seconds: wall clock, busy time of all usable processors, CPU time of this process."""
        times = psutil.cpu_times(percpu=True)
        busy = 0.0
        for number in self._usable:
            if number < len(times):
                one = times[number]
                waiting = one.idle + getattr(one, "iowait", 0.0)
                counted_twice = getattr(one, "guest", 0.0) + getattr(one, "guest_nice", 0.0)
                busy += sum(one) - waiting - counted_twice
        return time.monotonic(), busy, time.process_time()


@cache
def busy_cores() -> BusyCores:
    """The process-wide instance; measures from its first call on."""
    return BusyCores()


class ThreadCount:
    """The threads of one context: a fixed number, or as many as find a core (`count`).

    Without `follow`, the number stays what it was at first: flash attention on a CPU divides the
    cells among the threads, and sums in another order with another number of them.
    """

    def __init__(self, fixed: int | None, follow: bool = True) -> None:
        self._fixed = fixed is not None or not follow
        self.count = fixed or busy_cores().threads()
        self._next = time.monotonic() + _INTERVAL

    def changed(self) -> bool:
        """Whether `count` has changed since the last call; measures twice a second."""
        if self._fixed or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _INTERVAL
        before, self.count = self.count, busy_cores().threads()
        return self.count != before


def _usable_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
