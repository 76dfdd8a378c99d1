"""The bundle.toml of the demo trio: sizes and digests of the files as they were exported."""

from __future__ import annotations

from pathlib import Path

from capt_local.bundle.manifest import Bundle
from capt_local.bundle.roles import roles
from capt_local.bundle.write import describe, write_manifest
from scripts.train_demo_trio.stages import Preset

_SOURCE = "trained by the capt-local project, see MODEL_CARDS.md"


def write_bundle(folder: Path, preset: Preset) -> Path:
    """Describes the three files in `folder`; returns the manifest."""
    models = {
        role: describe(role, folder / f"{role}.gguf", licence="Apache-2.0", source=_SOURCE)
        for role in roles(1)
    }
    bundle = Bundle(
        id="demo" if preset.name != "tests" else "demo-tests",
        title="Three very small models that show the method; never for clinical use",
        version="1",
        licence="Apache-2.0",
        description="A general target, a clinical expert and its general base, two vocabularies.",
        models=models,
        context=min(shape.context for shape in preset.shapes.values()),
        folder=folder,
    )
    return write_manifest(bundle, folder)
