"""Reading a manifest: every key checked, what is not known refused, newer bundles by their name."""

from __future__ import annotations

import datetime
import hashlib
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from capt_local.bundle.adapter import read_adapter
from capt_local.bundle.card import KEYS
from capt_local.bundle.fields import NAME, Table
from capt_local.bundle.manifest import (
    ALPHA_LIMIT,
    MANIFEST,
    METHODS,
    SCHEMA,
    Bundle,
    Defaults,
    ModelFile,
    Style,
)
from capt_local.bundle.roles import Role, count_pairs, roles
from capt_local.bundle.versions import is_older, numbers
from capt_local.errors import ModelError
from capt_local.version import __version__

LARGEST_MANIFEST = 1 << 20
_BINDING = "llama-cpp-python"


def read_bundle(place: Path, today: datetime.date | None = None) -> Bundle:
    """Reads a manifest.

    Args:
        place: the `bundle.toml`, or its folder.
        today: the day, for bundles that are to be reviewed; None: that of the clock.

    Raises:
        ModelError: it is missing, broken, or made for a newer program, or a file that it names is
            not there.
    """
    file = place / MANIFEST if place.is_dir() else place
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ModelError(f"{file}: the bundle's manifest cannot be read: {reason}.") from None
    bundle = parse_manifest(data, file)
    return replace(bundle, notices=notices(bundle, today or datetime.date.today()))


def parse_manifest(data: bytes, file: Path, *, present: bool = True) -> Bundle:
    """The bundle of a manifest's bytes, without notices.

    Args:
        data: of the manifest.
        file: where it lies, or will lie.
        present: whether the files that it names have to be there.

    Raises:
        ModelError: it is broken, or made for a newer program; or a file is missing.
    """
    bundle = _bundle(Table(_parsed(data, file), file, present=present), file.parent)
    return replace(bundle, manifest_sha256=hashlib.sha256(data).hexdigest())


def notices(bundle: Bundle, today: datetime.date) -> tuple[str, ...]:
    """What the user should be told of a bundle: an old review, an engine it was not tested with."""
    told: list[str] = []
    if bundle.review_by and datetime.date.fromisoformat(bundle.review_by) < today:
        told.append(
            f"The bundle {bundle.id} was to be reviewed by {bundle.review_by}, which is past: ask "
            "whoever made it whether it may still be used."
        )
    try:
        here = version(_BINDING)
    except PackageNotFoundError:  # which the engine tells
        here = bundle.tested_with
    if bundle.tested_with and bundle.tested_with != here:
        told.append(
            f"The bundle {bundle.id} was tested with {_BINDING} {bundle.tested_with}; here it "
            f"runs with {here}."
        )
    return tuple(told)


def _parsed(data: bytes, file: Path) -> dict[str, object]:
    if len(data) > LARGEST_MANIFEST:
        raise ModelError(f"{file}: larger than 1 MiB; this is not a bundle's manifest.")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"{file}: not UTF-8; this is not a bundle's manifest.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise ModelError(f"{file}: not valid TOML{line}.") from None
    except ValueError:  # Python converts no more than some thousand digits
        raise ModelError(f"{file}: not valid TOML; a number in it has too many digits.") from None


def _bundle(top: Table, folder: Path) -> Bundle:
    _refuse_newer(top, folder)
    models = _models(top.table("models"), folder)
    bundle = Bundle(
        id=top.name("id"),
        title=top.text("title", ""),
        version=top.text("version", ""),
        requires=top.text("requires", ""),
        tested_with=top.text("tested_with", ""),
        review_by=top.date("review_by"),
        licence=top.text("licence", ""),
        description=top.text("description", ""),
        context=top.whole("context", 1),
        defaults=_defaults(top.table("defaults"), len(models) // 2),
        card=_card(top.table("card")),
        models=models,
        folder=folder,
    )
    top.done()
    return bundle


def _refuse_newer(top: Table, folder: Path) -> None:
    """A newer bundle may hold keys that this program does not know, so this comes first."""
    schema, needs = top.whole("schema", 1), top.peek("requires")
    name = top.peek("id")
    shown = name if name is not None and NAME.fullmatch(name) else folder.name
    if schema is not None and schema > SCHEMA:
        why = f"its format is {schema}, and this program reads {SCHEMA}"
    elif needs is not None and is_older(__version__, needs):
        why = f"it needs {needs}, and this is {__version__}"
    elif schema != SCHEMA:
        top.fail("schema", f"must be {SCHEMA}, the version of the format that this program reads")
    elif needs is not None and numbers(needs) is None:
        top.fail("requires", "must be a version of capt-local, such as 0.1.0")
    else:
        return
    top.refuse(
        f"the bundle {shown} was made for a newer capt-local: {why}. Update capt-local, or get a "
        "bundle made for this one."
    )


def _card(table: Table) -> dict[str, str]:
    card = {key: table.text(key) for key in KEYS if key in table}
    table.done()
    return card


def _models(tables: Table, folder: Path) -> dict[Role, ModelFile]:
    given = tables.keys()
    if "target" not in given:
        tables.fail("target", "is missing; every bundle has a target")
    pairs = count_pairs(given, tables.fail)
    return {role: _model(tables.table(role), role, folder) for role in roles(pairs)}


def _model(table: Table, role: Role, folder: Path) -> ModelFile:
    path, package = table.model_file(folder)
    size, digest = table.whole("size", 1), table.digest("sha256")
    for key, value in (("file", path), ("size", size), ("sha256", digest)):
        if value is None:
            table.fail(key, "is missing")
    model = ModelFile(
        role=role,
        path=cast(Path, path),
        size=cast(int, size),
        sha256=digest,
        licence=table.text("licence", ""),
        source=table.text("source", ""),
        style=Style(table.choice("style", list(Style)) or Style.CHAT),
        template=table.name("template") if "template" in table else None,
        template_file=table.file("template_file", folder),
        template_sha256=table.digest("template_sha256"),
        tokenizer_sha256=table.digest("tokenizer_sha256"),
        adapter=read_adapter(table.table("adapter"), folder) if "adapter" in table else None,
        package=package,
    )
    if model.template and (model.template_file or model.template_sha256):
        table.fail("template", "names a built-in template; remove template_file and its digest")
    if model.template_file and not model.template_sha256:
        table.fail("template_sha256", "is missing; template_file needs its digest")
    table.done()
    return model


def _defaults(table: Table, pairs: int) -> Defaults:
    alphas: tuple[float, ...] = ()
    if table.is_text("alpha"):
        table.choice("alpha", ("evidence",))
    else:
        alphas = table.numbers("alpha", -ALPHA_LIMIT, ALPHA_LIMIT)
    if len(alphas) > 1 and len(alphas) != pairs:
        table.fail("alpha", f"must be one number, or one for each pair of the bundle ({pairs})")
    defaults = Defaults(
        method=table.choice("method", METHODS),
        alphas=alphas,
        plausibility=table.number("plausibility", 0, 1),
        temperature=table.number("temperature", 0, 100),
        max_tokens=table.whole("max_tokens", 1),
    )
    table.done()
    return defaults
