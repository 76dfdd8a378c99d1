"""The bundle.toml of the demo trio: sizes and digests of the files as they were exported."""

from __future__ import annotations

import datetime
from pathlib import Path

from capt_local.bundles.create import describe, write_manifest
from capt_local.bundles.manifest import Bundle, ModelFile, Role, roles
from capt_local.llama.gguf_header import file_digests
from scripts.train_demo_trio.card import about
from scripts.train_demo_trio.stages import Preset

_SOURCE = "trained by the capt-local project, see MODEL_CARDS.md"


def write_bundle(folder: Path, preset: Preset) -> Path:
    """Describes the three files in `folder`; returns the manifest."""
    name = "demo" if preset.name != "tests" else "demo-tests"
    context = min(shape.context for shape in preset.shapes.values())
    return describe_trio(folder, name, context, datetime.date.today())


def describe_trio(folder: Path, name: str, context: int, made: datetime.date) -> Path:
    """Writes the manifest of three files.

    Args:
        folder: that holds them.
        name: the id of the bundle.
        context: tokens.
        made: the day on which they were made.
    """
    bundle = Bundle(
        id=name,
        title="Three very small models that show the method; never for clinical use",
        version="2.0",
        licence="Apache-2.0",
        description="A general target, a clinical expert and its general base, two vocabularies.",
        models={role: _model(role, folder / f"{role}.gguf") for role in roles(1)},
        context=context,
        folder=folder,
        **about(made),
    )
    return write_manifest(bundle, folder)


def _model(role: Role, path: Path) -> ModelFile:
    digests = file_digests(path)
    return describe(
        role,
        path,
        licence="Apache-2.0",
        source=_SOURCE,
        tokenizer_sha256=digests.tokenizer,
        template_sha256=digests.template,
    )
