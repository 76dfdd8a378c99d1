"""Loads the models of a bundle: all of them, or none.

Roles with the same file share its weights: the base of two experts is in memory once, with a KV
cache for each role. So is the base of an expert that is this base with a LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from capt_local.errors import ModelError, UsageError
from capt_local.llama.context import GGML_TYPES
from capt_local.llama.devices import Layers, default_gpus, plan
from capt_local.llama.gguf_header import check_adapter, read_header
from capt_local.llama.library import Closing, library
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import Adapter, LoadOptions
from capt_local.llama.resources import MemoryEstimate, check_fits, estimate, physical_cores
from capt_local.llama.weights import Weights
from capt_local.strict_json import Stamp


class ScaledAdapter(Protocol):
    """A LoRA adapter of one role, as in a bundle."""

    @property
    def path(self) -> Path: ...

    @property
    def scale(self) -> float: ...


def open_models(
    files: Mapping[str, Path],
    options: LoadOptions,
    progress: Callable[[str, float], None] | None = None,
    adapters: Mapping[str, Sequence[ScaledAdapter]] | None = None,
    stamps: Mapping[Path, Stamp] | None = None,
) -> dict[str, LlamaModel]:
    """Loads models, after checking that they fit into memory together.

    Args:
        files: by role; roles of one file share its weights.
        options: of each, without adapters.
        progress: called with a role (the first of a file) and the loaded fraction.
        adapters: by role; those of roles without a file are not used.
        stamps: of the files that were checked, by path; one that is not the same is not loaded.

    Raises:
        ModelError: a file is missing or broken, or an adapter does not fit its model.
        MemoryShortage: they do not fit.
        UsageError: the options hold adapters.
    """
    each = _options(files, options, adapters)
    needed = estimates(files, options, adapters)
    layers = planned(files, options, needed)
    check_fits(in_main_memory(needed, layers))
    models: dict[str, LlamaModel] = {}
    try:
        for path, roles in _by_file(files).items():
            report = None if progress is None else partial(progress, roles[0])
            together = tuple(one for role in roles for one in each[role].adapters)
            shared = replace(options, adapters=together)
            with Weights(path, shared, report, layers=layers[roles[0]], stamps=stamps) as weights:
                for role in roles:
                    models[role] = LlamaModel(
                        weights, each[role], name=role, prefers_batches=role != "target"
                    )
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return {role: models[role] for role in files}


def estimates(
    files: Mapping[str, Path],
    options: LoadOptions,
    adapters: Mapping[str, Sequence[ScaledAdapter]] | None = None,
) -> dict[str, MemoryEstimate]:
    """Memory that each model takes, by role.

    Shared weights and adapters are counted for their first role only. Arguments and errors as in
    `open_models`.
    """
    each = _options(files, options, adapters)
    needed: dict[str, MemoryEstimate] = {}
    for path, roles in _by_file(files).items():
        header, counted = read_header(path), set[Path]()
        for place, role in enumerate(roles):
            for adapter in each[role].adapters:
                check_adapter(adapter.path, header, path.name)
            found = estimate(header, each[role])
            again = counted.issuperset(one.path for one in each[role].adapters)
            needed[role] = replace(
                found,
                weights=0 if place else found.weights,
                movable=(0,) * found.layers if place else found.movable,
                adapters=0 if again else found.adapters,
            )
            counted.update(one.path for one in each[role].adapters)
    return {role: needed[role] for role in files}


def planned(
    files: Mapping[str, Path], options: LoadOptions, needed: Mapping[str, MemoryEstimate]
) -> dict[str, Layers]:
    """Layers of each model on GPUs, by role, as `open_models` will place them.

    Raises:
        UsageError: see `devices.plan`; or models that share weights are to go to several places.
    """
    groups = list(_by_file(files).values())
    for roles in groups:
        if len({options.placement(role) for role in roles}) > 1:
            raise UsageError(
                f"{' and '.join(roles)} share the weights of one file, so --device, --gpu-layers "
                "and --tensor-split have to be the same for them."
            )
    found = plan(
        {roles[0]: MemoryEstimate.together([needed[one] for one in roles]) for roles in groups},
        {roles[0]: options.placement(roles[0]) for roles in groups},
        library().devices(),
    )
    return {role: found[roles[0]] for roles in groups for role in roles}


def in_main_memory(
    needed: Mapping[str, MemoryEstimate], layers: Mapping[str, Layers]
) -> dict[str, MemoryEstimate]:
    """Main memory that each model needs, without its layers on GPUs."""
    return {
        role: one.without_gpu_layers(sum(layers[role].values())) for role, one in needed.items()
    }


def vocabulary_notices(models: Mapping[str, LlamaModel]) -> list[str]:
    """Notices about experts and bases with different vocabularies."""
    notes: list[str] = []
    for role, expert in models.items():
        other = role.replace("expert", "base")
        if other == role or other not in models:
            continue
        if not expert.vocabulary.same_as(models[other].vocabulary):
            notes.append(
                f"{role.capitalize()} and {other} have different vocabularies: the contrast also "
                "holds the difference of their tokens and is less sharp."
            )
    return notes


def _options(
    files: Mapping[str, Path],
    options: LoadOptions,
    adapters: Mapping[str, Sequence[ScaledAdapter]] | None,
) -> dict[str, LoadOptions]:
    """The options of each role, with its own adapters."""
    if options.adapters:
        raise UsageError("An adapter belongs to one model: name it in the bundle, not for all.")
    named = adapters or {}
    return {
        role: replace(
            options.of(role),
            adapters=tuple(Adapter(one.path, one.scale) for one in named.get(role, ())),
        )
        for role in files
    }


def _by_file(files: Mapping[str, Path]) -> dict[Path, list[str]]:
    """The roles of each file, in their order."""
    found: dict[Path, tuple[Path, list[str]]] = {}
    for role, path in files.items():
        # A link and its target are one file; errors have the path that the user gave.
        found.setdefault(path.resolve(), (path, []))[1].append(role)
    return dict(found.values())


class PlainLlama(Closing):
    """A second copy of a model, loaded and run by llama-cpp-python itself, for comparison.

    Context, threads and GPU layers are those of `model`, which is not changed.
    """

    def __init__(self, path: Path, model: LlamaModel, options: LoadOptions) -> None:
        library()  # checks the binding's version, and starts llama.cpp as for our own models
        import llama_cpp

        on_gpu, layers = model.metadata.gpu_layers, model.metadata.devices
        options = replace(options, context=model.context_limit)
        if on_gpu == 0:
            check_fits({"a second copy of the target": estimate(model.weights.header, options)})
        gpus = default_gpus(library().devices())
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
                tensor_split=[layers.get(name, 0) for name in gpus] if layers else None,
                type_k=GGML_TYPES[options.kv_type],
                type_v=GGML_TYPES[options.kv_type],
                flash_attn=options.flash(on_gpu > 0) != "off",
                use_mmap=False,
                verbose=False,
            )
        except (ValueError, RuntimeError):  # its message names the file
            raise ModelError("llama-cpp-python itself cannot load the target.") from None

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """The greedy continuation of a prompt, endless; clears the context first."""
        self._llama.reset()
        found: Iterator[int] = self._llama.generate(
            list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0
        )
        return found

    def close(self) -> None:
        self._llama.close()
