"""Whether models take text as their bundle says: its tokenizer, and its own chat template."""

from __future__ import annotations

from collections.abc import Iterable

from capt_local.bundles.manifest import ModelFile
from capt_local.errors import ModelError
from capt_local.llama.gguf_header import file_digests, read_header


def check_tokenizers(models: Iterable[ModelFile]) -> None:
    """Compares tokenizers and templates of files with their digests in the manifest, if any.

    Templates that lie beside the file are not looked at; see `bundles.verify`.

    Raises:
        ModelError: one is another, a file cannot be read, or a model with a digest is split.
    """
    for model in models:
        if model.sha256 is not None and (parts := read_header(model.path).parts) > 1:
            raise ModelError(
                f"The {model.role} of the bundle is one of {parts} parts, and the manifest has "
                "the digest of one alone. Join them with llama-gguf-split --merge."
            )
        template = None if model.template_file else model.template_sha256
        pinned = {"tokenizer": model.tokenizer_sha256, "chat template": template}
        if not any(pinned.values()):
            continue
        found = file_digests(model.path)
        there = {"tokenizer": found.tokenizer, "chat template": found.template}
        for what, digest in pinned.items():
            if digest is not None and there[what] != digest:
                raise ModelError(
                    f"The {what} of the {model.role} is not the one that the bundle names: its "
                    "SHA-256 differs. Get the bundle again from its source."
                )
