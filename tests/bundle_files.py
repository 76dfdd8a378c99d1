"""Models of a bundle that a test makes, with the sizes and digests of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capt_local.bundles.install import write_manifest
from capt_local.bundles.manifest import AdapterFile, Bundle, ModelFile, read_bundle
from capt_local.bundles.verify import file_digest


def describe(
    role: str,
    path: Path,
    *,
    template_file: Path | None = None,
    adapters: Sequence[AdapterFile] = (),
    **about: Any,
) -> ModelFile:
    if template_file is not None:
        about |= {"template_file": template_file, "template_sha256": file_digest(template_file)}
    made = tuple(replace(one, sha256=file_digest(one.path)) for one in adapters)
    about |= {"size": path.stat().st_size, "sha256": file_digest(path), "adapters": made}
    return ModelFile(role=role, path=path, **about)


def make_bundle(
    folder: Path, contents: Mapping[str, bytes], template: str | None = None, **about: Any
) -> Bundle:
    """A bundle of files with such contents, by role; the target may have a template beside it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    models = {}
    for role, data in contents.items():
        (folder / f"{role}.gguf").write_bytes(data)
        beside = None
        if template is not None and role == "target":
            beside = folder / "chat.jinja"
            beside.write_text(template)
        models[role] = describe(role, folder / f"{role}.gguf", template_file=beside)
    made = Bundle(models=models, **{"id": folder.name} | about)
    return read_bundle(write_manifest(made, folder))
