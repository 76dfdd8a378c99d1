"""Where an answer comes from: versions, models, method, parameters. No text of the user."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import platform
from typing import TYPE_CHECKING, Any

from capt_local.decoding.options import GenerateOptions
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.manifest import AttachedFile, Bundle, ModelFile
    from capt_local.llama.options import LoadOptions
    from capt_local.runtime import Runtime


def provenance(
    runtime: Runtime,
    options: GenerateOptions,
    load: LoadOptions,
    date: datetime.date | None,
    text: bytes | None = None,
) -> dict[str, Any]:
    """What is needed to make the same answer again, apart from the prompt.

    Stop strings are left out, their number apart: they may be words of a note. So is the form of
    the answer, its digest apart.

    Args:
        runtime: that answers.
        options: of the answer.
        load: how the models were loaded.
        date: what the chat templates took for today; None: the day of the answer.
        text: of the answer, if there is one: its digest is told, in the form in which JSON has it.
    """
    from capt_local.llama.library import library

    build = library().build_info()
    parameters = dataclasses.asdict(options)
    parameters["stop"] = len(options.stop)
    if options.structure is not None:  # a schema may be long, or hold words of a note
        form = {"kind": options.structure.kind, "sha256": options.structure.digest}
        parameters["structure"] = form
    bundle, template = runtime.bundle, runtime.template
    return {
        "versions": {
            "capt_local": __version__,
            "llama_cpp_python": build.binding,
            "llama_cpp": build.llama_cpp,
            "python": platform.python_version(),
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "build": build.system_info,
        "bundle": about_bundle(bundle),
        "models": {
            role: _model(runtime, role, file)
            for role, file in bundle.models.items()
            if role in runtime.models
        },
        "method": str(options.method),
        "parameters": parameters,
        "loading": {
            "threads": load.threads,
            "batch": load.batch,
            "flash_attention": load.flash_attention,
            "kv_type": load.kv_type,
        },
        "date": date.isoformat() if date else None,
        # That of a template given by hand, which replaces the models' own.
        "template_sha256": None if template is None else _digest(template.encode()),
        **({} if text is None else {"output_sha256": _digest(text)}),
    }


def _digest(text: bytes) -> str:
    return hashlib.sha256(text.decode("utf-8", "replace").encode()).hexdigest()


def about_bundle(bundle: Bundle) -> dict[str, Any]:
    """Which bundle, and who vouches for it."""
    return {
        "id": bundle.id,
        "version": bundle.version,
        # Both None for files that were given by their paths.
        "manifest_sha256": bundle.manifest_sha256,
        "signer": bundle.signer.as_object() if bundle.signer else None,
    }


def _model(runtime: Runtime, role: str, file: ModelFile) -> dict[str, Any]:
    model, late = runtime.models[role], runtime.late_digests
    about: dict[str, Any] = {
        "file": file.path.name,
        # Waits for the digest of a file that no manifest names; None if it changed meanwhile.
        "sha256": late.of(file),
        "verified": _verified(runtime, file),
    }
    if file.adapters:
        about["adapters"] = [
            {
                "file": adapter.path.name,
                "sha256": late.of(adapter),
                "scale": adapter.scale,
                "verified": _verified(runtime, adapter),
            }
            for adapter in file.adapters
        ]
    return about | {
        "architecture": model.metadata.architecture,
        "quantization": model.metadata.file_type,
        "context": model.context_limit,
        "gpu_layers": model.metadata.gpu_layers,
        "devices": model.metadata.devices,
    }


def _verified(runtime: Runtime, file: AttachedFile) -> str:
    """What this start has done about the digest of a manifest."""
    if file.sha256 is None:
        return "no manifest names it"
    how = runtime.verification.how.get(file.path)
    return how.value if how else "not checked"
