"""`capt-local models show`: what a bundle is, how its models fit together, and its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from capt_local.bundle.card import SECTIONS
from capt_local.bundle.check import Check
from capt_local.cli.exits import ExitCode
from capt_local.cli.models.verb import bundle_argument, mebibytes, size_of
from capt_local.cli.options import ViewFlags, option, verify_option
from capt_local.cli.policy import permitted, spoken_signer
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from capt_local.bundle.manifest import Bundle, ModelFile
    from capt_local.strict.stamp import Stamp
    from capt_local.vocab.vocabulary import Vocabulary

_UNSAID = "not stated"


@dataclass(frozen=True, slots=True)
class ShowFlags:
    """Which bundle, and how it is told."""

    bundle: Annotated[str, bundle_argument()]
    verify: Annotated[Check, verify_option()] = Check.CACHED
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


def models_show(what: ShowFlags, view: ViewFlags) -> int:
    """What a bundle is: its models, how well they fit together, licences, and its card.

    The digests are checked first, so that nothing else than the models of the bundle is read.
    """
    from capt_local.bundle import store, verify
    from capt_local.runtime.first_look import NOT_LOOKED_AT, is_trusted, look_first

    screen = Screen.standard(view.verbose)
    bundle = permitted(store.find(what.bundle), what.verify)
    try:

        def report(role: str, part: float) -> None:
            screen.progress(f"reading {role}", part)

        stamps = verify.verify(bundle, report, what.verify)
        stamps = look_first(bundle, check=what.verify, stamps=stamps, progress=report)
    finally:
        screen.clear_progress()
    if what.verify is Check.NEVER and not is_trusted(bundle):
        screen.note(f"note: {NOT_LOOKED_AT}")
    found = described(bundle, stamps)
    if what.json:
        screen.line(dumps(found, indent=2))
        return ExitCode.OK
    screen.show(*_tables(found, spoken_signer(bundle)))
    screen.notes(bundle.notices)
    return ExitCode.OK


def described(bundle: Bundle, stamps: Mapping[Path, Stamp] | None = None) -> dict[str, Any]:
    """All that is known of a bundle; only the vocabularies of its models are loaded.

    Args:
        bundle: read from its manifest.
        stamps: of the files that were checked, by path; one that is not the same is not loaded.

    Raises:
        ModelError: a file cannot be loaded.
    """
    from capt_local.engine.weights import Weights

    models: dict[str, dict[str, Any]] = {}
    vocabularies: dict[str, Vocabulary] = {}
    for role, model in bundle.models.items():
        with Weights(model.path, vocabulary_only=True, stamps=stamps) as weights:
            vocabularies[role] = weights.vocabulary
            models[role] = _model(model, weights)
    return {
        "bundle": _head(bundle),
        "models": models,
        "fit": _fits(bundle, models, vocabularies),
        "card": {
            section: {key: bundle.card.get(key) for key in keys}
            for section, keys in SECTIONS.items()
        },
        "notices": list(bundle.notices),
    }


def _head(bundle: Bundle) -> dict[str, Any]:
    return {
        "id": bundle.id,
        "title": bundle.title,
        "version": bundle.version,
        "licence": bundle.licence,
        "description": bundle.description,
        "requires": bundle.requires,
        "tested_with": bundle.tested_with,
        "review_by": bundle.review_by,
        "context": bundle.context,
        "size": size_of(bundle),
        "place": str(bundle.folder),
        "manifest_sha256": bundle.manifest_sha256,
        "signer": bundle.signer.as_object() if bundle.signer else None,
    }


def _model(model: ModelFile, weights: Any) -> dict[str, Any]:
    from capt_local.engine.gguf_header import file_digests

    about, digests = weights.metadata, file_digests(model.path, weights.header)
    return {
        "file": model.path.name,
        "size": model.size,
        "sha256": model.sha256,
        "architecture": about.architecture,
        "quantization": about.file_type,
        "vocabulary": about.vocabulary_size,
        "trained_context": about.context_length,
        "licence": model.licence,
        "source": model.source,
        "style": model.style.value,
        "adapter": str(model.adapter) if model.adapter else None,
        "tokenizer_sha256": digests.tokenizer,
        "template_sha256": model.template_sha256 or digests.template,
        "template": model.template,
    }


def _fits(
    bundle: Bundle, models: dict[str, dict[str, Any]], vocabularies: dict[str, Vocabulary]
) -> dict[str, Any]:
    from capt_local.bundle.roles import pair_roles
    from capt_local.cli.doctor import overlap

    fits: dict[str, Any] = {}
    for expert, base in (pair_roles(number) for number in range(1, bundle.pairs + 1)):
        ours, theirs = models[expert], models[base]
        template = [(each["template"], each["template_sha256"]) for each in (ours, theirs)]
        fits[expert] = {
            "base": base,
            "same_vocabulary": vocabularies[expert].same_as(vocabularies[base]),
            "same_tokenizer": ours["tokenizer_sha256"] == theirs["tokenizer_sha256"],
            "same_template": template[0] == template[1],
            "same_quantization": ours["quantization"] == theirs["quantization"],
            "overlap": overlap(vocabularies["target"], vocabularies[expert]),
        }
    return fits


def _tables(found: dict[str, Any], signer: str) -> list[Table]:
    about = found["bundle"]
    head = {**about, "size": mebibytes(about["size"]), "signer": signer}
    tables = [Table("Bundle", _rows(head))]
    for role, model in found["models"].items():
        told = {**model, "size": mebibytes(model["size"]), "vocabulary": f"{model['vocabulary']:,}"}
        tables.append(Table(role, _rows(told)))
    for expert, fit in found["fit"].items():
        told = {**fit, "overlap": f"{100 * fit['overlap']:.0f} % of the target's pieces"}
        tables.append(Table(f"How {expert} and {fit['base']} fit", _rows(told)))
    for section, texts in found["card"].items():
        headings = SECTIONS[section]
        rows = tuple((headings[key], text or _UNSAID) for key, text in texts.items())
        tables.append(Table(f"Card: {section}", rows))
    return tables


def _rows(values: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (name.replace("_", " "), _told(value))
        for name, value in values.items()
        if value not in ("", None)
    )


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
