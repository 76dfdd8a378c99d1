"""Making a bundle: a manifest with the digests of the files as they are now."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from capt_local.bundle.adapter import AdapterFile
from capt_local.bundle.card import SECTIONS
from capt_local.bundle.manifest import MANIFEST, SCHEMA, Bundle, Defaults, ModelFile, Style
from capt_local.bundle.packaged import PackageFile
from capt_local.bundle.read import read_bundle
from capt_local.bundle.roles import Role
from capt_local.bundle.verify import file_digest
from capt_local.errors import ModelError


def describe(
    role: Role,
    path: Path,
    *,
    licence: str = "",
    source: str = "",
    style: Style = Style.CHAT,
    template: str | None = None,
    template_file: Path | None = None,
    template_sha256: str | None = None,
    tokenizer_sha256: str | None = None,
    adapter: AdapterFile | None = None,
    package: PackageFile | None = None,
) -> ModelFile:
    """One model with size and digest taken from the file.

    Args:
        role: what it does in the bundle; see `bundle.roles`.
        path: of the GGUF file, in the folder of the bundle.
        licence: of the weights.
        source: where they come from.
        style: how the model is asked.
        template: name of a built-in chat template.
        template_file: chat template in the folder of the bundle.
        template_sha256: digest of the GGUF's own template, to pin it.
        tokenizer_sha256: likewise of its tokenizer.
        adapter: a LoRA adapter in the folder of the bundle; its digest is taken too.
        package: the installed Python package that has the file at `path`.

    Raises:
        ModelError: a file cannot be read.
    """
    size, pinned = _facts(role, path, template_file)
    return ModelFile(
        role=role,
        path=path,
        size=size,
        sha256=file_digest(path, size),
        licence=licence,
        source=source,
        style=style,
        template=template,
        template_file=template_file,
        template_sha256=pinned or template_sha256,
        tokenizer_sha256=tokenizer_sha256,
        adapter=adapter and replace(adapter, sha256=file_digest(adapter.path, adapter.size)),
        package=package,
    )


def _facts(role: Role, path: Path, template_file: Path | None) -> tuple[int, str | None]:
    """The size of a model and the digest of its template file."""
    try:
        pinned = hashlib.sha256(template_file.read_bytes()).hexdigest() if template_file else None
        return path.stat().st_size, pinned
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"The {role}'s files cannot be read: {reason}.") from None


def write_manifest(bundle: Bundle, folder: Path, *, whole_card: bool = False) -> Path:
    """Writes `bundle.toml` into the folder that holds the models; the same input, the same bytes.

    Args:
        bundle: what it says.
        folder: where the models lie.
        whole_card: the headings of the card that have no text stand there too, as comments.

    Returns:
        The manifest that was written.

    Raises:
        ModelError: a model lies elsewhere, or what was written does not read back the same.
    """
    file = folder / MANIFEST
    draft = folder / f"{MANIFEST}.new"
    try:
        draft.write_bytes(manifest_text(bundle, folder, whole_card=whole_card).encode("utf-8"))
        # Read back before it counts, so that a manifest that was written can be read.
        again = read_bundle(draft)
        if replace(again, notices=()) != replace(bundle, folder=folder, notices=()):
            raise ModelError(
                "The manifest does not read back as it was meant; nothing was written."
            )
        os.replace(draft, file)
    except OSError as error:
        raise ModelError(f"{file} cannot be written: {error.strerror or 'no access'}.") from None
    finally:
        draft.unlink(missing_ok=True)
    return file


def manifest_text(bundle: Bundle, folder: Path, *, whole_card: bool = False) -> str:
    """The text of a manifest; see `write_manifest`.

    Raises:
        ModelError: a model has no digest or lies outside the folder.
    """
    head = {
        "schema": SCHEMA,
        "id": bundle.id,
        "title": bundle.title,
        "version": bundle.version,
        "requires": bundle.requires or None,
        "tested_with": bundle.tested_with or None,
        "review_by": datetime.date.fromisoformat(bundle.review_by) if bundle.review_by else None,
        "licence": bundle.licence,
        "description": bundle.description,
        "context": bundle.context,
    }
    said = bundle.defaults
    defaults = {
        "method": said.method,
        "alpha": _alpha(said),
        "plausibility": said.plausibility,
        "temperature": said.temperature,
        "max_tokens": said.max_tokens,
    }
    tables = [_lines(head), "\n[defaults]\n" + _lines(defaults)]
    if bundle.card or whole_card:
        card = _whole_card(bundle.card) if whole_card else _lines(bundle.card)
        tables.append("\n[card]\n" + card)
    for role, model in bundle.models.items():
        tables.append(f"\n[models.{role}]\n" + _lines(_model(model, folder)))
        if model.adapter is not None:
            values = _adapter(role, model.adapter, folder)
            tables.append(f"\n[models.{role}.adapter]\n" + _lines(values))
    return "".join(tables)


def _whole_card(card: Mapping[str, str]) -> str:
    """Every key of a card by its section; one without a text as a comment, to be filled in."""
    lines: list[str] = []
    for section, headings in SECTIONS.items():
        lines.append(f"# {section}\n")
        for key, heading in headings.items():
            blank = f'# {key} = ""  # {heading}\n'
            lines.append(_lines({key: card[key]}) if key in card else blank)
    return "".join(lines)


def _alpha(said: Defaults) -> object:
    if not said.alphas:
        return "evidence"
    return said.alphas[0] if len(said.alphas) == 1 else list(said.alphas)


def _model(model: ModelFile, folder: Path) -> dict[str, object]:
    if model.sha256 is None:
        raise ModelError(f"The {model.role} has no digest; describe it from its file first.")
    return {
        **_file(model.path, model.package, folder),
        "size": model.size,
        "sha256": model.sha256,
        "licence": model.licence,
        "source": model.source,
        "style": model.style.value,
        "template": model.template,
        "template_file": _inside(model.template_file, folder) if model.template_file else None,
        "template_sha256": model.template_sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
    }


def _adapter(role: Role, adapter: AdapterFile, folder: Path) -> dict[str, object]:
    if adapter.sha256 is None:
        raise ModelError(f"The {role}'s adapter has no digest; describe it from its file first.")
    return {
        **_file(adapter.path, adapter.package, folder),
        "size": adapter.size,
        "sha256": adapter.sha256,
        "scale": adapter.scale,
        "licence": adapter.licence,
        "source": adapter.source,
    }


def _file(path: Path, package: PackageFile | None, folder: Path) -> dict[str, object]:
    if package is None:
        return {"file": _inside(path, folder)}
    return {"package": package.package, "file": package.file}


def _inside(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        raise ModelError(f"{path.name} does not lie in the folder of the bundle.") from None


def _lines(values: Mapping[str, object]) -> str:
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None
    )


def _toml(value: object) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML string, but for the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, datetime.date) else repr(value)
