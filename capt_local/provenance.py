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
    from capt_local.llama.library import BuildInfo
    from capt_local.llama.model import LlamaModel
    from capt_local.llama.options import LoadOptions
    from capt_local.runtime import Runtime


def provenance(
    runtime: Runtime,
    options: GenerateOptions,
    load: LoadOptions,
    date: datetime.date | None,
    text: bytes | None = None,
) -> dict[str, Any]:
    """What is needed to make the same answer again, apart from prompt and stop strings.

    Args:
        runtime: that answers.
        options: of the answer.
        load: how the models were loaded.
        date: what the chat templates took for today; None: the day of the answer.
        text: of the answer, if there is one; only its digest is included, over the text as in JSON.
    """
    from capt_local.llama.library import library

    build = library().build_info()
    bundle, template = runtime.bundle, runtime.template
    return {
        "versions": {**versions_of(build), "python": platform.python_version()},
        "platform": platform_name(),
        "build": build.system_info,
        "bundle": about_bundle(bundle),
        "models": {
            role: _model(runtime, role, file)
            for role, file in bundle.models.items()
            if role in runtime.models
        },
        "method": str(options.method),
        "parameters": parameters_of(options, len(options.stop)),
        "loading": {
            "threads": load.threads,
            "batch": load.batch,
            "flash_attention": load.flash_attention,
            "kv_type": load.kv_type,
        },
        "date": date.isoformat() if date else None,
        # That of a template given by hand, which replaces the models' own.
        "template_sha256": None if template is None else _digest(template),
        **({} if text is None else {"output_sha256": _digest(text.decode("utf-8", "replace"))}),
    }


def parameters_of(options: GenerateOptions, stop: object) -> dict[str, Any]:
    """Parameters of an answer, with `stop` for the stop strings: they may be words of a note."""
    parameters = dataclasses.asdict(options) | {"stop": stop}
    if options.structure is not None:  # a schema may be long, or hold words of a note
        form = {"kind": options.structure.kind, "sha256": options.structure.digest}
        parameters["structure"] = form
    return parameters


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def versions_of(build: BuildInfo) -> dict[str, str]:
    """What computes an answer."""
    return {
        "capt_local": __version__,
        "llama_cpp_python": build.binding,
        "llama_cpp": build.llama_cpp,
    }


def platform_name() -> str:
    """Operating system and processor, as in "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def about_bundle(bundle: Bundle) -> dict[str, Any]:
    """Identity and signer of a bundle."""
    return {
        "id": bundle.id,
        "version": bundle.version,
        # Both None for files that were given by their paths.
        "manifest_sha256": bundle.manifest_sha256,
        "signer": bundle.signer.as_object() if bundle.signer else None,
    }


def _model(runtime: Runtime, role: str, file: ModelFile) -> dict[str, Any]:
    adapters = [_file(runtime, adapter, scale=adapter.scale) for adapter in file.adapters]
    return {
        **_file(runtime, file),
        **({"adapters": adapters} if adapters else {}),
        **about_model(runtime.models[role]),
    }


def _file(runtime: Runtime, file: AttachedFile, **more: Any) -> dict[str, Any]:
    verified = "no manifest names it"
    if file.sha256 is not None:
        how = runtime.verification.how.get(file.path)
        verified = how.value if how else "not checked"
    # Waits for the digest of a file that no manifest names; None if it changed meanwhile.
    sha256 = runtime.background_digests.of(file)
    return {"file": file.path.name, "sha256": sha256, **more, "verified": verified}


def about_model(model: LlamaModel) -> dict[str, Any]:
    """How a model was loaded."""
    return {
        "architecture": model.metadata.architecture,
        "quantization": model.metadata.file_type,
        "context": model.context_limit,
        "gpu_layers": model.metadata.gpu_layers,
        "devices": model.metadata.devices,
    }
