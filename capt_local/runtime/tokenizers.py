"""Whether models split text as their bundle says."""

from __future__ import annotations

from collections.abc import Iterable

from capt_local.bundle.manifest import ModelFile
from capt_local.engine.digests import file_digests
from capt_local.errors import ModelError


def check_tokenizers(models: Iterable[ModelFile]) -> None:
    """Compares the tokenizers of files with the digests in the manifest, where there are any.

    Raises:
        ModelError: one is another, or a file cannot be read.
    """
    for model in models:
        pinned = model.tokenizer_sha256
        if pinned is not None and file_digests(model.path).tokenizer != pinned:
            raise ModelError(
                f"The tokenizer of the {model.role} is not the one that the bundle names: its "
                "SHA-256 differs. Get the bundle again from its source."
            )
