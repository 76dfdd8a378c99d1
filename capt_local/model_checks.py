"""What is checked of model files before they are loaded in this process.

Files that no trusted manifest names are loaded in a process of their own first.

Trusted are the bundle that travels with the package, and bundles that a trusted key has signed.
What was looked into once, at import too, is remembered as digests are (see `bundles.known`), by
device, inode, size and times: a place in the user's own store says nothing of who has put a file
there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from capt_local.bundles import store
from capt_local.bundles.digest_cache import DigestCache, digest_cache
from capt_local.bundles.manifest import Bundle, ModelFile
from capt_local.bundles.verify import Check
from capt_local.errors import ModelError
from capt_local.llama import probe
from capt_local.llama.gguf_header import file_digests, model_parts, read_header
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
        What tells that a file is still the one that was looked into, by path; `stamps` among them.

    Raises:
        ModelError: a file is missing or damaged, or ended the process that looked at it.
        MemoryShortage: one does not fit into memory.
    """
    found = dict(stamps or {})
    if check is Check.NEVER or is_trusted(bundle):
        return found
    wanted = bundle.models if models is None else models
    parts: dict[Path, tuple[Path, ...]] = {}
    for model in wanted.values():
        for path in (model.path, *(one.path for one in model.adapters)):
            found.setdefault(path, _stamp(path))
        parts[model.path] = model_parts(model.path, read_header(model.path))
        for part in parts[model.path]:
            found.setdefault(part, _stamp(part))
    known = digest_cache()
    for role, files in _by_model(wanted):
        marks = _marks(files, parts[files[0]], found)
        if check is Check.CACHED and known is not None and _is_known(known, marks, found):
            continue
        waiting = None if progress is None else partial(progress, role, 0.0)
        for path, digest in probe.look(files[0], files[1:], waiting, found).items():
            found[path] = found[path].with_digest(digest)
        if known is not None:
            for path, mark in marks.items():
                known.store(path, found[path], mark, _ABOUT)
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
    stamp = stamp or _stamp(path)
    known, mark = digest_cache(), _mark(stamp)
    if check is Check.CACHED and known is not None and known.find(path, stamp, _ABOUT) == mark:
        return stamp
    for digest in probe.look(path, (), None, {path: stamp}, encoder=True).values():
        stamp = stamp.with_digest(digest)
    if known is not None:
        known.store(path, stamp, mark, _ABOUT)
    return stamp


def _by_model(models: Mapping[str, ModelFile]) -> Iterable[tuple[str, list[Path]]]:
    """The first role of each model file, and the file with all adapters that are put on it."""
    found: dict[Path, tuple[str, list[Path]]] = {}
    for role, model in models.items():
        _, files = found.setdefault(model.path.resolve(), (role, [model.path]))
        files += [one.path for one in model.adapters if one.path not in files]
    return found.values()


def _is_known(known: DigestCache, marks: Mapping[Path, str], stamps: Mapping[Path, Stamp]) -> bool:
    return all(known.find(path, stamps[path], _ABOUT) == mark for path, mark in marks.items())


def _marks(
    files: Sequence[Path], parts: Sequence[Path], stamps: Mapping[Path, Stamp]
) -> dict[Path, str]:
    """What is remembered of a model, and of adapters on that model, with this llama.cpp."""
    model = [stamps[part] for part in parts]
    return {path: _mark(*model, stamps[path]) for path in files}


def _mark(*stamps: Stamp) -> str:
    return hashlib.sha256(repr((BINDING_VERSION, stamps)).encode()).hexdigest()


def _stamp(path: Path) -> Stamp:
    try:
        return stamp_of(os.stat(path))
    except FileNotFoundError:
        raise ModelError(f"{path.name}: there is no such model file.") from None
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{path.name} cannot be read: {reason}.") from None


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
