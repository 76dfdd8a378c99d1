"""What `doctor` finds out: facts about this machine and a bundle, and what is wrong with them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capt_local.bundle.check import Check
from capt_local.cli.doctor.surroundings import archive_flaws
from capt_local.cli.exits import ExitCode, code_for
from capt_local.cli.mebibytes import mebibytes
from capt_local.cli.vouched import spoken_signer
from capt_local.errors import CaptError, MemoryShortage, ModelError
from capt_local.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from capt_local.bundle.manifest import Bundle
    from capt_local.engine.options import LoadOptions
    from capt_local.strict.stamp import Stamp
    from capt_local.vocab.vocabulary import Vocabulary

_CHECKED = {
    Check.ALWAYS: "verified",
    Check.CACHED: "verified, now or since they last changed",
    Check.NEVER: "not checked",
}


@dataclass(slots=True)
class Diagnosis:
    """Facts by section, and problems in the order in which they were found.

    Attributes:
        facts: section to name to value; values are text, numbers, booleans or None.
        problems: lines that say what is wrong.
        warnings: lines about what works but should be known.
        stamps: of the model files that were checked, by path.
        code: the exit code; that of the first problem.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    code: ExitCode = ExitCode.OK

    def problem(self, error: CaptError) -> None:
        """Notes what is wrong; the first problem decides the exit code."""
        self.problems.append(str(error))
        if self.code is ExitCode.OK:
            self.code = code_for(error)

    def attempt(self, section: str, find: Callable[[], dict[str, Any]]) -> None:
        """Fills a section, or notes why that is not possible."""
        try:
            self.facts[section] = find()
        except CaptError as error:
            self.problem(error)


def software(diagnosis: Diagnosis) -> dict[str, Any]:
    """Versions and build flags.

    Raises:
        UsageError: the binding is missing or not the pinned version.
    """
    from capt_local.engine.library import library

    build = library().build_info()
    flaws = archive_flaws()
    diagnosis.warnings.extend([flaws] if flaws else [])
    return {
        "capt-local": __version__,
        "llama-cpp-python": build.binding,
        "llama.cpp": build.llama_cpp,
        "Python": platform.python_version(),
        "known flaws of this Python": "in unpacking archives" if flaws else "none",
        "platform": f"{platform.system()} {platform.machine()}",
        "build flags": build.system_info,
    }


def backend(diagnosis: Diagnosis) -> dict[str, Any]:
    """Devices, and whether layers go to a GPU; notes the problem of one that does not compute."""
    from capt_local.engine.library import library

    build = library().build_info()
    gpus = [device for device in build.devices if device.is_gpu]
    facts: dict[str, Any] = {"live": gpus[0].name if gpus else "CPU"}
    facts["GPU support in this build"] = build.gpu_offload
    facts["weight formats left out, since they crash"] = ", ".join(build.left_out) or "none"
    for index, device in enumerate(build.devices):
        there = f", {mebibytes(device.free)} of {mebibytes(device.total)} free"
        free = there if device.total else ""
        right = library().computes(index)
        facts[device.name] = f"{device.kind}: {device.description}{free}"
        facts[f"{device.name} multiplies two matrices"] = "rightly" if right else "not"
        if device.total:
            facts[f"{device.name} free bytes"] = device.free
        if not right:
            diagnosis.problem(
                ModelError(
                    f"{device.name} does not multiply two small matrices rightly: answers would be "
                    "wrong. Update its driver, or build llama.cpp without it."
                )
            )
    return facts


def memory() -> dict[str, Any]:
    """Total and available main memory."""
    import psutil

    from capt_local.engine.memory import available_memory

    total, free = int(psutil.virtual_memory().total), available_memory()
    facts: dict[str, Any] = {"total": mebibytes(total), "available": mebibytes(free)}
    return facts | {"total bytes": total, "available bytes": free}


def files(bundle: Bundle, check: Check, diagnosis: Diagnosis) -> dict[str, Any]:
    """What the bundle is, its files checked against its manifest; their stamps are kept.

    Raises:
        ModelError: a file is missing or not the one that the manifest names.
    """
    from capt_local.bundle import verify

    diagnosis.stamps = verify.verify(bundle, check=check)
    known = all(bundle.digests.values())
    return {
        "id": bundle.id,
        "version": bundle.version,
        "roles": ", ".join(bundle.models),
        "digests": _CHECKED[check] if known else "none known",
        "signer": spoken_signer(bundle),
    }


def room(bundle: Bundle, options: LoadOptions, diagnosis: Diagnosis) -> dict[str, Any]:
    """What a run takes in memory; notes the problem when it does not fit.

    Raises:
        ModelError: a file is not a GGUF that can be read.
    """
    from capt_local.cli.doctor.fit import fit

    found = fit(bundle, options)
    context = f"{options.context:,}" if options.context else "the models' own, at most 4,096"
    facts: dict[str, Any] = {"context": context, "program": mebibytes(found.program)}
    for role, one in found.models.items():
        # The weights of a file that several models share are counted with the first of them.
        weights = f"weights {mebibytes(one.weights)}" if one.weights else "weights shared"
        adapter = f", adapter {mebibytes(one.adapters)}" if one.adapters else ""
        facts[role] = (
            f"{mebibytes(one.total)}: {weights}{adapter}, KV cache {mebibytes(one.kv_cache)}, "
            f"compute {mebibytes(one.buffers)}"
        )
    if found.reading:
        facts["reading a prompt"] = mebibytes(found.reading)
    facts |= {"needed": mebibytes(found.needed), "available": mebibytes(found.available)}
    facts["needed bytes"], facts["available bytes"] = found.needed, found.available
    facts["fits"] = found.fits
    layers = (f"{role} {on} of {found.models[role].layers}" for role, on in found.on_gpu.items())
    facts["layers on the GPU"] = ", ".join(layers) if found.gpu else "none: no GPU is live"
    try:
        found.check()
    except MemoryShortage as error:
        diagnosis.problem(error)
    return facts


def roles(bundle: Bundle, diagnosis: Diagnosis) -> dict[str, Any]:
    """How the models of a bundle go together; only their vocabularies are loaded.

    Raises:
        ModelError: a file cannot be loaded.
    """
    from capt_local.bundle.roles import pair_roles
    from capt_local.engine.weights import Weights

    vocabularies: dict[str, Vocabulary] = {}
    templates: dict[str, str | None] = {}
    facts: dict[str, Any] = {}
    for role, model in bundle.models.items():
        with Weights(model.path, vocabulary_only=True, stamps=diagnosis.stamps) as weights:
            about = weights.metadata
            facts[role] = (
                f"{about.architecture}, {about.file_type}, {about.vocabulary_size:,} tokens, "
                f"trained for {about.context_length:,}"
                + (f", {model.adapter}" if model.adapter else "")
            )
            vocabularies[role], templates[role] = weights.vocabulary, about.chat_template
    for expert, base in (pair_roles(number) for number in range(1, bundle.pairs + 1)):
        same = vocabularies[expert].same_as(vocabularies[base])
        facts[f"{expert} and {base}: same vocabulary"] = same
        facts[f"{expert} and {base}: same chat template"] = templates[expert] == templates[base]
        share = overlap(vocabularies["target"], vocabularies[expert])
        facts[f"target's pieces that the {expert} has too"] = f"{100 * share:.0f} %"
        if not same:
            diagnosis.warnings.append(
                f"{expert.capitalize()} and {base} have different vocabularies: this works, but "
                "the contrast also holds the difference of their tokens."
            )
    return facts


def overlap(target: Vocabulary, expert: Vocabulary) -> float:
    """The share of the target's text pieces that are pieces of the expert as well."""
    ours = {piece for piece, text in zip(target.pieces(), target.is_text, strict=True) if text}
    theirs = {piece for piece, text in zip(expert.pieces(), expert.is_text, strict=True) if text}
    return len(ours & theirs) / len(ours) if ours else 0.0
