"""Checks of model files before they are loaded in this process.

Files that no trusted manifest names are first loaded in an isolated process (`llama.probe`).
Trusted are the bundle in the package, and bundles signed by a trusted key. The results, also those
of imports, are cached like digests (`bundles.verify`), by device, inode, size and times: that a
file is in the user's own store does not show who put it there.
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

NOT_PROBED = (
    "--verify never: the model files are loaded as they are, without a first look in a process of "
    "their own."
)
_ABOUT = "examined:"


def is_trusted(bundle: Bundle) -> bool:
    """Whether a trusted manifest names the files of a bundle."""
    if bundle.folder is None or any(file.sha256 is None for _, file in bundle.attached):
        return False
    return bundle.signer is not None or store.is_packaged(bundle)


def probe_untrusted(
    bundle: Bundle,
    models: Mapping[str, ModelFile] | None = None,
    *,
    check: Check = Check.CACHED,
    stamps: Mapping[Path, Stamp] | None = None,
    progress: Progress | None = None,
) -> dict[Path, Stamp]:
    """Probes the files of a bundle that no trusted manifest names, in an isolated process.

    Args:
        bundle: that they belong to.
        models: those that are to be loaded, by role; None: all of the bundle.
        check: `always` ignores cached results, `never` probes nothing.
        stamps: of files whose digests were checked, by path.
        progress: called with a role and 0, several times a second; may raise to stop.

    Returns:
        `stamps`, and those of the probed files.

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
        _probe(path, adapters, check, found, waiting)
    return found


def probe_encoder(
    path: Path, check: Check = Check.CACHED, stamp: Stamp | None = None
) -> Stamp | None:
    """Probes the encoder of a scorer that no trusted manifest names.

    Returns:
        A stamp that identifies the probed file; `stamp` itself with `never`.
    """
    if check is Check.NEVER:
        return stamp
    found = {} if stamp is None else {path: stamp}
    _probe(path, (), check, found, encoder=True)
    return found[path]


def _probe(
    path: Path,
    adapters: Sequence[Path],
    check: Check,
    stamps: dict[Path, Stamp],
    waiting: probe.Waiting | None = None,
    *,
    encoder: bool = False,
) -> None:
    """Probes a model and adapters on it, unless the result is cached; completes `stamps`."""
    for one in (path, *adapters):
        with readable(one):
            stamps.setdefault(one, stamp_of(os.stat(one)))
    # Cache keys of the model, and of each adapter on that model, for this version of llama.cpp.
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
    for one, digest in probe.probe_files(path, adapters, waiting, stamps, encoder).items():
        stamps[one] = stamps[one].with_digest(digest)
    for one, mark in marks.items():
        known.store(one, stamps[one], mark, _ABOUT)


def check_tokenizers(models: Iterable[ModelFile]) -> None:
    """Compares tokenizers and templates of files with their digests in the manifest, if any.

    Templates in files of their own are checked elsewhere; see `bundles.verify`.

    Raises:
        ModelError: a digest differs, a file cannot be read, or a model with a digest is split.
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
