"""Reading `bundle.toml`: every key is checked, and an unknown one refused."""

from __future__ import annotations

import datetime
import hashlib
import re
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec

from capt_local.bundles.manifest import (
    ALPHA_LIMIT,
    MANIFEST,
    METHODS,
    NAME,
    SCALE_LIMIT,
    SCHEMA,
    AdapterFile,
    Bundle,
    Defaults,
    ModelFile,
    PackageFile,
    Role,
    Style,
    count_pairs,
    roles,
)
from capt_local.errors import ModelError
from capt_local.strict_json import NotReadable, convert, form, read_regular
from capt_local.version import __version__

LARGEST_MANIFEST = 1 << 20
_BINDING = "llama-cpp-python"
_CONTROL = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]")
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")

ShortName = Annotated[
    str,
    form(
        NAME.pattern,
        "must be 1 to 64 letters, digits, '.', '-' or '_', first a letter or digit",
    ),
]
_Digest = Annotated[
    str, form("[0-9a-f]{64}", "must be a SHA-256 of 64 lower-case hexadecimal digits")
]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
_Alpha = Annotated[float, msgspec.Meta(ge=-ALPHA_LIMIT, le=ALPHA_LIMIT)]


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    file: str
    size: _Count
    sha256: _Digest
    package: ShortName | None = None
    licence: str = ""
    source: str = ""


class _Adapter(_File, forbid_unknown_fields=True, kw_only=True):
    scale: Annotated[float, msgspec.Meta(ge=-SCALE_LIMIT, le=SCALE_LIMIT)] = 1.0


class _Model(_File, forbid_unknown_fields=True, kw_only=True):
    style: Style = Style.CHAT
    template: ShortName | None = None
    template_file: str | None = None
    template_sha256: _Digest | None = None
    tokenizer_sha256: _Digest | None = None
    adapter: dict[str, Any] | None = None


class _Defaults(msgspec.Struct, forbid_unknown_fields=True):
    method: str | None = None
    alpha: Any = "evidence"
    plausibility: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    max_tokens: _Count | None = None


class _Manifest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    schema: Literal[1]
    id: ShortName
    title: str = ""
    version: str = ""
    requires: str = ""
    tested_with: str = ""
    review_by: datetime.date | None = None
    licence: str = ""
    description: str = ""
    context: _Count | None = None
    defaults: dict[str, Any] = {}
    card: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}


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
        data = read_regular(file, LARGEST_MANIFEST + 1)
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
    try:
        bundle = _bundle(_parsed(data), file.parent, present)
    except NotReadable as error:
        raise ModelError(f"{file}: {error}.") from None
    return replace(bundle, manifest_sha256=hashlib.sha256(data).hexdigest())


def notices(bundle: Bundle, today: datetime.date) -> tuple[str, ...]:
    """Warnings about a bundle: its review is overdue, or it was tested with another engine."""
    found: list[str] = []
    if bundle.review_by and datetime.date.fromisoformat(bundle.review_by) < today:
        found.append(
            f"The bundle {bundle.id} was to be reviewed by {bundle.review_by}, which is past: ask "
            "whoever made it whether it may still be used."
        )
    try:
        here = version(_BINDING)
    except PackageNotFoundError:  # an error of the engine
        here = bundle.tested_with
    if bundle.tested_with and bundle.tested_with != here:
        found.append(
            f"The bundle {bundle.id} was tested with {_BINDING} {bundle.tested_with}; here it "
            f"runs with {here}."
        )
    return tuple(found)


def version_numbers(version: str) -> tuple[int, ...] | None:
    """The numbers of a version without zeros at its end; None where it is no such version."""
    if not _VERSION.fullmatch(version):
        return None
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def is_older(one: str, other: str) -> bool:
    """Whether a version comes before another; False where one of them cannot be compared."""
    left, right = version_numbers(one), version_numbers(other)
    return left is not None and right is not None and left < right


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > LARGEST_MANIFEST:
        raise NotReadable("larger than 1 MiB; this is not a bundle's manifest")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise NotReadable("not UTF-8; this is not a bundle's manifest") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise NotReadable(f"not valid TOML{line}") from None
    except ValueError:  # Python converts no more than some thousand digits
        raise NotReadable("not valid TOML; a number in it has too many digits") from None


def _bundle(top: dict[str, Any], folder: Path, present: bool) -> Bundle:
    _refuse_newer(top, folder)
    _refuse_control_characters(top)
    read = convert(top, _Manifest)
    if "target" not in read.models:
        raise NotReadable("models.target is missing; every bundle has a target")
    try:
        wanted = roles(count_pairs(list(read.models)))
    except NotReadable as error:
        raise NotReadable(f"models.{error}") from None
    models = {role: _model(read.models[role], role, folder, present) for role in wanted}
    return Bundle(
        id=read.id,
        title=read.title,
        version=read.version,
        requires=read.requires,
        tested_with=read.tested_with,
        review_by=read.review_by.isoformat() if read.review_by else "",
        licence=read.licence,
        description=read.description,
        context=read.context,
        defaults=_defaults(read.defaults, len(models) // 2),
        card=_card(read.card),
        models=models,
        folder=folder,
    )


def _refuse_newer(top: dict[str, Any], folder: Path) -> None:
    """A newer bundle may have keys that this program does not know, so this comes first."""
    schema, needs, name = top.get("schema"), top.get("requires"), top.get("id")
    shown = name if isinstance(name, str) and NAME.fullmatch(name) else folder.name
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < SCHEMA:
        raise NotReadable(f"schema must be {SCHEMA}, the format that this program reads")
    if schema > SCHEMA:
        why = f"its format is {min(schema, 10**6)}, and this program reads {SCHEMA}"
    elif isinstance(needs, str) and is_older(__version__, needs):
        why = f"it needs {needs}, and this is {__version__}"
    elif isinstance(needs, str) and needs and version_numbers(needs) is None:
        raise NotReadable("requires must be a version of capt-local, such as 0.1.0")
    else:
        return
    raise NotReadable(
        f"the bundle {shown} was made for a newer capt-local: {why}. Update capt-local, or get a "
        "bundle made for this one"
    )


def _refuse_control_characters(value: object, place: str = "") -> None:
    """Texts of a manifest go to terminals and reports."""
    if isinstance(value, str) and _CONTROL.search(value):
        raise NotReadable(f"{place or 'a text'} holds control characters")
    if isinstance(value, dict):
        for key, each in value.items():
            plain = key if NAME.fullmatch(key) else "a key with odd characters"
            _refuse_control_characters(each, f"{place}.{plain}" if place else plain)
    elif isinstance(value, list):
        for each in value:
            _refuse_control_characters(each, place)


def _card(texts: dict[str, Any]) -> dict[str, str]:
    for key, text in texts.items():
        if not NAME.fullmatch(key):
            raise NotReadable("card has a key with odd characters")
        convert(text, str, f"card.{key}")
    return texts


def _model(table: dict[str, Any], role: Role, folder: Path, present: bool) -> ModelFile:
    at = f"models.{role}"
    read = convert(table, _Model, at)
    if read.template and (read.template_file or read.template_sha256):
        raise NotReadable(
            f"{at}.template names a built-in template; remove template_file and its digest"
        )
    if read.template_file and not read.template_sha256:
        raise NotReadable(f"{at}.template_sha256 is missing; template_file needs its digest")
    path, package = _place(read, at, folder, present)
    template = None
    if read.template_file is not None:
        template = _inside(read.template_file, f"{at}.template_file", folder, present)
    return ModelFile(
        role=role,
        path=path,
        size=read.size,
        sha256=read.sha256,
        licence=read.licence,
        source=read.source,
        style=read.style,
        template=read.template,
        template_file=template,
        template_sha256=read.template_sha256,
        tokenizer_sha256=read.tokenizer_sha256,
        adapter=None if read.adapter is None else _adapter(read.adapter, at, folder, present),
        package=package,
    )


def _adapter(table: dict[str, Any], at: str, folder: Path, present: bool) -> AdapterFile:
    at = f"{at}.adapter"
    read = convert(table, _Adapter, at)
    path, package = _place(read, at, folder, present)
    return AdapterFile(
        path=path,
        size=read.size,
        sha256=read.sha256,
        scale=read.scale,
        licence=read.licence,
        source=read.source,
        package=package,
    )


def _defaults(table: dict[str, Any], pairs: int) -> Defaults:
    read = convert(table, _Defaults, "defaults")
    if read.method is not None and read.method not in METHODS:
        raise NotReadable(f"defaults.method must be one of {', '.join(METHODS)}")
    alphas: tuple[float, ...] = ()
    if read.alpha != "evidence":
        given = read.alpha if isinstance(read.alpha, list) else [read.alpha]
        alphas = convert(tuple(given), tuple[_Alpha, ...], "defaults.alpha")
        if len(alphas) != 1 and len(alphas) != pairs:
            raise NotReadable(
                f"defaults.alpha must be one number, or one for each pair of the bundle ({pairs})"
            )
    return Defaults(read.method, alphas, read.plausibility, read.temperature, read.max_tokens)


def _place(read: _File, at: str, folder: Path, present: bool) -> tuple[Path, PackageFile | None]:
    """Where a model or adapter is, and the package that has it."""
    if read.package is None:
        return _inside(read.file, f"{at}.file", folder, present), None
    _check_relative(read.file, f"{at}.file")
    found = PackageFile(read.package, read.file)
    return found.find(folder) if present else folder / found.name, found


def _inside(value: str, at: str, folder: Path, present: bool) -> Path:
    """A regular file inside the folder of the bundle."""
    _check_relative(value, at)
    path = folder / value
    if not present:
        return path
    try:
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except OSError as error:  # a folder that nobody may look into, a name that is too long
        raise NotReadable(f"{at} cannot be read: {error.strerror or 'no access'}") from None
    except RuntimeError:
        raise NotReadable(f"{at} is a link that leads to itself") from None
    if not inside:
        raise NotReadable(f"{at} is a link that leaves the folder of the bundle")
    if not there:
        raise NotReadable(f"{at} names {value}, which is not there")
    return path


def _check_relative(value: str, at: str) -> None:
    """Refuses paths that lead out of the folder of the bundle or package."""
    path = PurePosixPath(value)
    if "\\" in value or path.is_absolute() or PureWindowsPath(value).drive:
        raise NotReadable(f"{at} must be a path relative to the folder of the bundle, with '/'")
    if not path.name or ".." in path.parts:
        raise NotReadable(f"{at} must name a file inside the folder of the bundle")
