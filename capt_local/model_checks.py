"""What is checked of model files before they are loaded in this process.

Files that no trusted manifest names are loaded in a process of their own first. Trusted are the
bundle that travels with the package, and bundles that a trusted key has signed. What was looked
into once, at import too, is remembered as digests are (`bundles.verify`), by device, inode,
size and times: a place in the user's own store says nothing of who has put a file there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from capt_local.bundles import store
from capt_local.bundles.manifest import Bundle, ModelFile
from capt_local.bundles.verify import Check, DigestCache
from capt_local.errors import ModelError
from capt_local.llama import probe
from capt_local.llama.gguf_header import file_digests, readable
from capt_local.llama.library import BINDING_VERSION
from capt_local.strict_json import Stamp, stamp_of

Progress = Callable[[str, float], None]

NOT_LOOKED_AT = (
    "--verify never: the model files are loaded as they are, without a first look in a process of "
    "their own."
)
_ABOUT = "examined:"


def is_trusted(bundle: Bundle) -> bool:
    """Whether a trusted manifest names the files of a bundle."""
    if bundle.folder is None or any(file.sha256 is None for _, file in bundle.attached):
        return False
    return bundle.signer is not None or store.is_packaged(bundle)


def look_first(
    bundle: Bundle,
    models: Mapping[str, ModelFile] | None = None,
    *,
    check: Check = Check.CACHED,
    stamps: Mapping[Path, Stamp] | None = None,
    progress: Progress | None = None,
) -> dict[Path, Stamp]:
    """Has files that no trusted manifest names loaded elsewhere first.

    Args:
        bundle: that they belong to.
        models: those that are to be loaded, by role; None: all of the bundle.
        check: `always` looks again at what is known, `never` looks at nothing.
        stamps: of files whose digests were checked, by path.
        progress: called with a role and 0, several times a second; may raise to stop.

    Returns:
        `stamps`, and those of the files that were looked into.

    Raises:
        ModelError: a file is missing or damaged, or ended the process that looked at it.
        MemoryShortage: one does not fit into memory.
    """
    found = dict(stamps or {})
    if check is Check.NEVER or is_trusted(bundle):
        return found
    each: dict[Path, tuple[str, list[Path]]] = {}  # by file: the first role, and all adapters on it
    for role, model in (bundle.models if models is None else models).items():
        _, files = each.setdefault(model.path.resolve(), (role, [model.path]))
        files += [one.path for one in model.adapters if one.path not in files]
    for role, (path, *adapters) in each.values():
        waiting = None if progress is None else partial(progress, role, 0.0)
        _look(path, adapters, check, found, waiting)
    return found


def look_at_encoder(
    path: Path, check: Check = Check.CACHED, stamp: Stamp | None = None
) -> Stamp | None:
    """The same for the encoder of a scorer that no trusted manifest names.

    Returns:
        What tells that it is still the file that was looked into; None with `never`.
    """
    if check is Check.NEVER:
        return stamp
    found = {} if stamp is None else {path: stamp}
    _look(path, (), check, found, encoder=True)
    return found[path]


def _look(
    path: Path,
    adapters: Sequence[Path],
    check: Check,
    stamps: dict[Path, Stamp],
    waiting: probe.Waiting | None = None,
    *,
    encoder: bool = False,
) -> None:
    """Looks into a model and adapters on it, unless they are known; completes the stamps."""
    for one in (path, *adapters):
        with readable(one):
            stamps.setdefault(one, stamp_of(os.stat(one)))
    # What is remembered of a model, and of adapters on that model, with this llama.cpp.
    marks = {
        one: hashlib.sha256(
            repr((BINDING_VERSION, (stamps[path], stamps[one]))).encode()
        ).hexdigest()
        for one in (path, *adapters)
    }
    known = DigestCache()
    if check is Check.CACHED and all(
        known.find(one, stamps[one], _ABOUT) == mark for one, mark in marks.items()
    ):
        return
    for one, digest in probe.look(path, adapters, waiting, stamps, encoder).items():
        stamps[one] = stamps[one].with_digest(digest)
    for one, mark in marks.items():
        known.store(one, stamps[one], mark, _ABOUT)


def check_tokenizers(models: Iterable[ModelFile]) -> None:
    """Compares tokenizers and templates of files with their digests in the manifest, if any.

    Templates that lie beside the file are not looked at; see `bundles.verify`.

    Raises:
        ModelError: one is another, a file cannot be read, or a model with a digest is split.
    """
    for model in models:
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
