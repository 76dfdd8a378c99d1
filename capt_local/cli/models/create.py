"""`capt-local models create`: a bundle of models that lie anywhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capt_local.cli.exits import ExitCode
from capt_local.cli.models.manage import described, mebibytes, named
from capt_local.cli.models.travel import examine, found_before, is_found
from capt_local.cli.options import ViewFlags, option
from capt_local.config import Feature, read_site
from capt_local.errors import ModelError, UsageError
from capt_local.policy import signed
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table
from capt_local.version import __version__

if TYPE_CHECKING:
    from capt_local.bundles.create import Put
    from capt_local.bundles.manifest import Bundle
    from capt_local.bundles.staging import Staging

_LONGEST = 200
_ROLE = re.compile(r"(?:target|(?:expert|base)(?:-[0-9]+)?)(?:\.adapter)?")
_TOKENS = "tokenizer.ggml.tokens"
_LICENCE = ("general.license.name", "general.license")
_SOURCE = (
    "general.repo_url",
    "general.url",
    "general.source.repo_url",
    "general.source.url",
    "general.source.huggingface.repository",
)


def _model(name: str, help: str) -> Any:
    return option(name, metavar="GGUF|BUNDLE:ROLE", help=help)


@dataclass(frozen=True, slots=True)
class CreateFlags:
    """Of what a bundle is made, and where it goes."""

    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="A short name for the bundle.", show_default=False),
    ]
    target: Annotated[
        str | None, _model("--target", "The target: a file, or a model of a bundle that is here.")
    ] = None
    expert: Annotated[
        list[str] | None,
        _model("--expert", "The clinical expert, likewise; once for each of several pairs."),
    ] = None
    base: Annotated[
        list[str] | None,
        _model("--base", "What the expert was trained from; in the order of the experts."),
    ] = None
    expert_adapter: Annotated[
        list[str] | None,
        option(
            "--expert-adapter",
            metavar="GGUF[=SCALE]",
            help="A LoRA adapter for each expert; without --expert, of the base.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="The folder that is made. Default: in the user's own store.",
        ),
    ] = None
    copy: Annotated[
        bool,
        option("--copy", help="Copy every file; else those that only you can change are linked."),
    ] = False
    replace: Annotated[
        bool, option("--replace", help="Replace a bundle that is there already.")
    ] = False
    version: Annotated[
        str, option("--version", metavar="N.N", help="Of the bundle. Default: 1.")
    ] = "1"
    title: Annotated[str, option("--title", metavar="TEXT", help="One line for people.")] = ""
    licence: Annotated[
        list[str] | None,
        option(
            "--licence",
            metavar="[ROLE=]TEXT",
            help="Of all models, or of one. Default: what their files say.",
        ),
    ] = None
    allow_misfit: Annotated[
        bool,
        option("--allow-misfit", help="Allow an expert and base with different vocabularies."),
    ] = False
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


def models_create(what: CreateFlags, view: ViewFlags) -> int:
    """Makes a bundle of a target, an expert and its base: a manifest with the digest of each file.

    Each file is loaded once in a process of its own; expert and base must have one vocabulary. A
    model without a chat template gets the style "raw". All else in bundle.toml (defaults, context,
    card) is yours to edit before you sign it with 'models export --key'.

    Examples:
      capt-local models create heart --target qwen.gguf --expert med.gguf --base llama.gguf

      capt-local models create heart --target qwen.gguf --base demo:base --expert-adapter lora.gguf
    """
    from capt_local.bundles.create import write_manifest
    from capt_local.bundles.manifest_file import read_bundle
    from capt_local.bundles.staging import free_place, new_staging

    unsigned = "A bundle that models create makes, which nobody has signed,"
    read_site().limits.refuse(Feature.UNSIGNED, unsigned)
    screen = Screen.standard(view.verbose)
    planned, notes = _planned(what)
    place = free_place(planned, what.output, replaced=what.replace)
    with new_staging(place, in_store=what.output is None) as staging:
        put, fits = _collect(planned, staging, what, screen)
        put.check()
        write_manifest(put.bundle, staging.folder)
        staging.install()
    bundle = read_bundle(place)
    notes += _notes(put, fits, what)
    if what.output is None and not is_found(bundle):
        notes.append(found_before(bundle))
    if what.json:
        screen.line(dumps(_as_object(bundle, put, fits, notes), indent=2))
        return ExitCode.OK
    screen.show(_table(bundle, put))
    screen.notes((*notes, *bundle.notices))
    screen.line(f"{named(bundle)} is made: {bundle.folder}")
    by_id = what.output is None and is_found(bundle)
    screen.line(f"Use it with: capt-local generate -m {bundle.id if by_id else bundle.folder}")
    return ExitCode.OK


def _planned(what: CreateFlags) -> tuple[Bundle, list[str]]:
    """The bundle as far as flags and headers decide it, and notes for the user."""
    from capt_local.bundles import store
    from capt_local.bundles.create import ingredients
    from capt_local.bundles.manifest import NAME, AdapterFile
    from capt_local.bundles.manifest_file import version_numbers

    if what.target is None or not what.base or not (what.expert or what.expert_adapter):
        raise UsageError(
            "A bundle is made of a --target, an --expert (or --expert-adapter) and its --base."
        )
    if not NAME.fullmatch(what.id):
        raise UsageError(
            "The id of a bundle has 1 to 64 letters, digits, '.', '-' or '_', first a letter or "
            "digit."
        )
    if version_numbers(what.version) is None:
        raise UsageError("--version is numbers with dots, as in 1.2, so that it can travel.")
    if not what.title.isprintable():
        raise UsageError("--title holds control characters.")
    bundle = ingredients(
        what.target,
        what.expert or (),
        what.base,
        [AdapterFile.parse(given) for given in what.expert_adapter or ()],
        lambda reference: signed(store.find(reference)),
    )
    bundle = replace(
        bundle, id=what.id, version=what.version, title=what.title, requires=__version__
    )
    return _with_headers(bundle, what)


def _with_headers(bundle: Bundle, what: CreateFlags) -> tuple[Bundle, list[str]]:
    """The bundle with what its files say: licences, sources, styles, digests of tokenizers."""
    from capt_local.bundles.manifest import Style, pair_roles
    from capt_local.llama.adapters import check_adapter
    from capt_local.llama.gguf_header import file_digests, read_header

    terms = [*bundle.models, *(f"{role}.adapter" for role in bundle.adapters)]
    licences, notes = _by_role(what.licence or (), terms), list[str]()
    models, headers = {}, {}
    for role, model in bundle.models.items():
        try:
            header = headers[role] = read_header(model.path)
            digests = file_digests(model.path, header)
            if header.parts > 1:
                raise ModelError(
                    f"{model.path.name} is one of {header.parts} parts, and a bundle has one file "
                    "for a model: join them with llama-gguf-split --merge."
                )
            adapter = model.adapter
            if adapter is not None:
                check_adapter(adapter.path, header, model.path.name)
                values = read_header(adapter.path).values
                adapter = replace(
                    adapter,
                    licence=_licence(f"{role}.adapter", licences, adapter.licence, values, notes),
                    source=adapter.source or _first(values, _SOURCE),
                )
        except ModelError as error:
            raise ModelError(f"The {role}: {error}") from None
        chat = model.template or model.template_file or digests.template
        if model.template_file is not None:
            raise UsageError(
                f"The {role} has a template file in its bundle, which models create does not "
                "bring along. Copy that bundle's folder and edit its bundle.toml instead."
            )
        models[role] = replace(
            model,
            licence=_licence(role, licences, model.licence, header.values, notes),
            source=model.source or _first(header.values, _SOURCE),
            style=model.style if chat else Style.RAW,
            template_sha256=None if model.template else digests.template,
            tokenizer_sha256=digests.tokenizer,
            adapter=adapter,
        )
    for number in range(1, bundle.pairs + 1):
        expert, base = pair_roles(number)
        ours, theirs = (headers[role].lengths.get(_TOKENS, 0) for role in (expert, base))
        if ours != theirs and not what.allow_misfit:
            _refuse_misfit(f"The {expert} has {ours:,} tokens and the {base} {theirs:,}")
    every = [model.licence for model in models.values()]
    every += [adapter.licence for adapter in replace(bundle, models=models).adapters.values()]
    names = [_plain(headers[role].values.get("general.name")) for role in ("target", "expert")]
    title = bundle.title or (" with ".join(names) if all(names) else "")
    licence = "; ".join(dict.fromkeys(every))
    return replace(bundle, models=models, licence=licence, title=title or bundle.id), notes


def _licence(
    name: str,
    given: Mapping[str, str],
    known: str,
    values: Mapping[str, object],
    notes: list[str],
) -> str:
    """The licence of a model or adapter: the flag's, else what its bundle or file says."""
    flag, known = given.get(name, given.get("", "")), known or _first(values, _LICENCE)
    if not (flag or known):
        raise UsageError(
            f"The licence of the {name} is not known: its file names none. Give --licence "
            f"{name}=NAME, or --licence NAME for all."
        )
    if flag and known and flag != known:
        notes.append(f"The file of the {name} names the licence {known!r}, not {flag!r}.")
    return flag or known


def _by_role(values: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """The texts of ROLE=TEXT by role; that of all models by the empty name."""
    found: dict[str, str] = {}
    for value in values:
        role, equals, text = value.partition("=")
        if not equals or not _ROLE.fullmatch(role):
            role, text = "", value
        elif role not in names:
            raise UsageError(f"--licence names {role}, but the bundle has only {', '.join(names)}.")
        if not text.strip() or not text.isprintable():
            raise UsageError("--licence is empty, or holds more than plain text.")
        if role in found:
            raise UsageError(f"--licence is given twice for {role or 'all models'}.")
        found[role] = text
    return found


def _collect(
    planned: Bundle, staging: Staging, what: CreateFlags, screen: Screen
) -> tuple[Put, dict[str, Any]]:
    """Brings the files together and looks into each; returns how the pairs fit."""
    from capt_local.bundles.archive import members
    from capt_local.bundles.create import put_together
    from capt_local.model_checks import check_tokenizers

    try:
        with staging.guarded():
            put = put_together(
                planned,
                staging.folder,
                copy=what.copy,
                report=lambda name, part: screen.progress(f"reading {name}", part),
            )
        members(put.bundle)  # refuses one model under two names
        examine(put.bundle, screen)
    finally:
        screen.clear_progress()
    check_tokenizers(put.bundle.models.values())
    fits: dict[str, Any] = described(put.bundle)["fit"]
    for expert, fit in fits.items():
        if not (fit["same_vocabulary"] or what.allow_misfit):
            _refuse_misfit(f"The {expert} and its {fit['base']} do not fit")
    return put, fits


def _refuse_misfit(found: str) -> None:
    raise ModelError(
        f"{found}: they have different vocabularies, so the contrast would also hold the "
        "difference of their tokens. Give the model that the expert was trained from, or "
        "--allow-misfit."
    )


def _notes(put: Put, fits: Mapping[str, Any], what: CreateFlags) -> list[str]:
    found = []
    models = put.bundle.models
    for role, model in models.items():
        if role != "target" and model.sha256 == models["target"].sha256:
            found.append(f"The target and the {role} are the same model.")
    for expert, fit in fits.items():
        found += [
            f"The {expert} and its {fit['base']} differ in their {name}: the contrast also holds "
            "that difference."
            for name in ("vocabulary", "template", "quantization")
            if not fit[f"same_{name}"]
        ]
    if put.linked:
        found.append(
            f"{', '.join(put.linked)} share their bytes with the files that were given: do not "
            "write into those (--copy makes the bundle independent)."
        )
    if put.copied and not what.copy:
        found.append(
            f"{', '.join(put.copied)} are copies: the files lie on another disk, or others may "
            "write them."
        )
    return found


def _table(bundle: Bundle, put: Put) -> Table:
    rows = tuple(
        (
            role,
            mebibytes(model.size),
            "linked" if model.path.name in put.linked else "copied",
            model.style.value,
            model.licence + (f"; adapter: {model.adapter.licence}" if model.adapter else ""),
        )
        for role, model in bundle.models.items()
    )
    return Table("Models", rows, ("role", "size", "file", "style", "licence"), (1,))


def _as_object(
    bundle: Bundle, put: Put, fits: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "id": bundle.id,
        "version": bundle.version,
        "place": str(bundle.folder),
        "licence": bundle.licence,
        "fit": fits,
        "linked": list(put.linked),
        "copied": list(put.copied),
        "notices": [*notes, *bundle.notices],
    }


def _first(values: Mapping[str, object], keys: Sequence[str]) -> str:
    return next((text for key in keys if (text := _plain(values.get(key)))), "")


def _plain(text: object) -> str:
    """A text of a file as one line of printable characters, cut where it is long."""
    if not isinstance(text, str):
        return ""
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())[:_LONGEST]
