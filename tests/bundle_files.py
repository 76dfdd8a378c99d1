"""Models of a bundle that a test makes, with the sizes and digests of their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capt_local.bundles.manifest import AdapterFile, ModelFile
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
