"""What decides the results of an evaluation, for its output and for going on after a stop."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capt_local.bundle.verify import file_digest
from capt_local.cli.eval.setup import EvalFlags
from capt_local.decoding.options import GenerateOptions
from capt_local.evaluate.runs.exam import Exam, Plan
from capt_local.evaluate.tasks.items import Kind
from capt_local.evaluate.tasks.styles import Style
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundle.manifest import AdapterFile, Bundle, ModelFile
    from capt_local.engine.options import LoadOptions


def settings(what: EvalFlags, exams: Sequence[Exam], plan: Plan, seed: int) -> dict[str, Any]:
    """Tasks, styles and parameters by name; no text of prompts, items or stop strings."""
    return {
        "seed": seed,
        "limit": what.limit,
        "max_input_bytes": what.max_input_bytes,
        "choice": {
            exam.task.name: str(plan.choice_of(exam))
            for exam in exams
            if exam.task.kind is Kind.CLASSIFICATION
        },
        "raw": plan.raw,
        "max_tokens": plan.max_tokens,
        "temperature": plan.temperature,
        "tasks": {exam.task.name: exam.task.digest for exam in exams},
        "styles": {exam.task.name: _style(exam.style) for exam in exams if exam.style is not None},
        "methods": {name: _parameters(options) for name, options in plan.methods.items()},
    }


def fingerprint(
    chosen: Mapping[str, Any], bundle: Bundle, load: LoadOptions, date: str
) -> dict[str, Any]:
    """Everything that decides a result; where it is computed (threads, GPU) is left out.

    Args:
        chosen: see `settings`.
        bundle: whose files are read where no manifest names their digest.
        load: how models are loaded.
        date: what chat templates take for today.

    Raises:
        ModelError: a model file cannot be read.
    """
    from capt_local.engine.library import library

    build = library().build_info()
    return {
        "versions": {
            "capt_local": __version__,
            "llama_cpp_python": build.binding,
            "llama_cpp": build.llama_cpp,
        },
        "models": {str(role): _model(file) for role, file in bundle.models.items()},
        "context": load.context,
        "flash_attention": load.flash_attention,
        "kv_type": load.kv_type,
        "date": date,
        **chosen,
    }


def _model(file: ModelFile) -> dict[str, Any]:
    adapter = file.adapter
    return {
        "sha256": file.sha256 or file_digest(file.path, file.size),
        **({"adapter": _adapter(adapter)} if adapter else {}),
        "style": str(file.style),
        "template": file.template,
        "template_sha256": file.template_sha256,
    }


def _adapter(file: AdapterFile) -> dict[str, Any]:
    digest = file.sha256 or file_digest(file.path, file.size)
    return {"sha256": digest, "scale": file.scale}


def _parameters(options: GenerateOptions) -> dict[str, Any]:
    """The parameters of a method; what the plan decides for all of them is told there."""
    parameters = dataclasses.asdict(options)
    for name in ("max_tokens", "top", "method"):
        del parameters[name]
    del parameters["sample"]["temperature"]
    # Stop strings may be words of a note.
    parameters["stop"] = [_digest(text) for text in options.stop]
    return parameters


def _style(style: Style) -> dict[str, Any]:
    shots = style.shots
    return {
        "name": style.name,
        "samples": style.samples,
        "temperature": style.temperature,
        "max_tokens": style.max_tokens,
        "marker": style.marker,
        "texts": _digest(
            {kind: prompt.template for kind, prompt in style.prompts.items()},
            style.system,
            style.lead,
        ),
        "shots": None
        if shots is None
        else {"count": shots.count, "by": str(shots.by), "file": shots.examples.digest},
    }


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
