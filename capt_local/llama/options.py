"""Options of loading a model: placement, context, threads, batches, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Literal

from capt_local.errors import UsageError

GpuLayers = int | Literal["auto", "all"]
KvType = Literal["f16", "q8_0", "q4_0", "f32"]
FlashAttention = Literal["auto", "on", "off"]

_PLAIN_KV = ("f16", "f32")  # other formats need flash attention in llama.cpp
CPU = "CPU"  # llama.cpp's name of it as a device
_MOST_ROWS = 255  # llama.cpp keeps sequence ids in a bit set of 256, one for the running sequence


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of a model: its GGUF file and its scale; 0 has no effect."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise UsageError(f"{self.path.name}: a scale of {self.scale} is no number.")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the layers of one model go.

    Attributes:
        gpu_layers: number of layers on GPUs; "auto": as many as fit; "all": even if they do not.
        devices: names of llama.cpp devices to use, or CPU; empty: all GPUs.
        tensor_split: proportions of the layers on these devices, as in llama.cpp; empty: as few
            devices as possible.
    """

    gpu_layers: GpuLayers = "auto"
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("devices", "tensor_split"):  # a list does as well
            object.__setattr__(self, name, tuple(getattr(self, name)))
        layers, devices, split = self.gpu_layers, self.devices, self.tensor_split
        if isinstance(layers, int) and layers < 0:
            raise UsageError(f"--gpu-layers {layers} is negative.")
        if len(set(devices)) < len(devices):
            raise UsageError("--device names a device twice for one model.")
        if CPU in devices and (len(devices) > 1 or layers not in ("auto", 0)):
            raise UsageError(
                "--device CPU keeps a model off all GPUs: no other device and no --gpu-layers go "
                "with it."
            )
        if split and not (isfinite(sum(split)) and min(split) >= 0 < sum(split)):
            raise UsageError("--tensor-split takes numbers from 0 on, one of them above 0.")
        if split and devices and len(split) != len(devices):
            raise UsageError(
                f"--tensor-split has {len(split)} numbers for {len(devices)} devices of a model."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions(Placement):
    """Everything that determines how a model is loaded.

    Attributes:
        placements: of single roles of a bundle, instead of this one.
        context: context size in tokens, or None: the trained context length, but at most 4,096,
            since the KV cache is allocated at once.
        threads: CPU threads, or None: as many physical cores as other processes leave free,
            measured twice a second.
        flash_attention: "auto" uses it with layers on a GPU, or if the KV cache's format needs it.
        kv_type: number format of the KV cache.
        max_rows: logit rows that one call may read, and branches that one batch may hold; each
            takes 8 bytes per token of the vocabulary.
        batch: tokens that go through the model at once, or None: 512 with layers on a GPU, else
            128 (more take more memory, and a CPU gains little from them).
        check_tensors: looks at every weight for NaN and infinities while loading (slow).
        adapters: LoRA adapters of this model, in the order of their scales.
    """

    placements: Mapping[str, Placement] = field(default_factory=dict, hash=False)
    context: int | None = None
    threads: int | None = None
    flash_attention: FlashAttention = "auto"
    kv_type: KvType = "f16"
    max_rows: int = 16
    batch: int | None = None
    check_tensors: bool = False
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        Placement.__post_init__(self)
        if self.context is not None and self.context < 1:
            raise UsageError(f"--ctx-size {self.context} is below 1.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} is below 1.")
        if not 1 <= self.max_rows <= _MOST_ROWS:
            raise UsageError(f"{self.max_rows} logit rows are not 1 to {_MOST_ROWS}.")
        if self.batch is not None and self.batch < self.max_rows:
            raise UsageError(f"A batch of {self.batch} tokens is below {self.max_rows} logit rows.")

    def placement(self, role: str) -> Placement:
        """The placement of a role."""
        general = Placement(self.gpu_layers, self.devices, self.tensor_split)
        return self.placements.get(role, general)

    def of(self, role: str) -> LoadOptions:
        """The options of a role, with its own placement."""
        own = self.placement(role)
        return replace(
            self,
            gpu_layers=own.gpu_layers,
            devices=own.devices,
            tensor_split=own.tensor_split,
            placements={},
        )

    def flash(self, on_gpu: bool) -> FlashAttention:
        """The flash attention setting for llama.cpp.

        On a CPU its flash attention processes KV cells one by one: with heads of size 64 a token
        after 700 others took twice the time, a batch of eight three times (docs/results.md).
        """
        if self.flash_attention != "auto" or on_gpu or self.kv_type not in _PLAIN_KV:
            return self.flash_attention
        return "off"

    def batch_size(self, on_gpu: bool) -> int:
        """Tokens of a batch; at least as many as rows may be read."""
        return self.batch or max(512 if on_gpu else 128, self.max_rows)


def scales_of(
    model: str, options: LoadOptions, scales: Sequence[float] | None
) -> tuple[float, ...]:
    """The scales of a model's adapters: these, or with None those that it was loaded with.

    Raises:
        UsageError: the number of scales differs from that of adapters; names the role.
    """
    if scales is None:
        return tuple(one.scale for one in options.adapters)
    if len(scales) != len(options.adapters):
        count = len(options.adapters)
        raise UsageError(
            f"The {model} has {count or 'no'} adapter{'s' * (count != 1)}, so "
            f"{len(scales)} scales do not fit."
        )
    return tuple(scales)
