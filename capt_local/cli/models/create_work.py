"""Making a bundle step by step: what is cheap to find out comes first, nothing is half done."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capt_local.cli.models.create_card import card_of
from capt_local.cli.models.create_flags import AboutFlags, CheckFlags, FromFlags
from capt_local.cli.models.create_measure import Measured, Sample, measured, read_sample
from capt_local.cli.models.create_plan import Plan, planned, refuse_misfit
from capt_local.report.terminal import Screen

if TYPE_CHECKING:
    from capt_local.bundle.creating import Put
    from capt_local.bundle.incoming import Incoming
    from capt_local.bundle.manifest import Bundle


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that has been made.

    Attributes:
        bundle: as it lies in its place.
        put: which files were linked and which copied.
        facts: see `show.described`.
        run: what was measured; None with --no-run.
        notes: for the user.
    """

    bundle: Bundle
    put: Put
    facts: dict[str, Any]
    run: Measured | None
    notes: tuple[str, ...]


def made(what: FromFlags, about: AboutFlags, how: CheckFlags, screen: Screen) -> Made:
    """Makes a bundle.

    Raises:
        UsageError: a flag is missing or has no meaning.
        ModelError: a model is missing, broken, or does not go with the others, or there is no
            place for the bundle. Nothing is left of it.
        MemoryShortage: the models do not fit; nothing was copied.
        Cancelled: Ctrl-C was pressed; nothing is left.
    """
    from capt_local.bundle.creating_place import place_of_bundle, under_way
    from capt_local.bundle.read import read_bundle
    from capt_local.bundle.write import write_manifest
    from capt_local.cli.models.travel import found_before, is_found

    today = datetime.date.today()
    plan = planned(what, about, misfit=how.allow_misfit, today=today)
    place = place_of_bundle(plan.bundle, what.output, replaced=what.replace)
    sample = None if how.no_run else _ready(plan.bundle, how)
    with under_way(place, in_store=what.output is None) as incoming:
        put, facts = _brought(plan, incoming, what, how, screen)
        run = measured(put.bundle, sample, how, screen) if sample else None
        put.check()
        bundle = _finished(put.bundle, plan, facts, run, today)
        write_manifest(bundle, incoming.folder, whole_card=True)
        incoming.install()
    notes = (*plan.notes, *_notes(put, facts, run, what))
    bundle = read_bundle(place)
    if what.output is None and not is_found(bundle):
        notes += (found_before(bundle),)
    return Made(bundle, put, facts, run, notes)


def _ready(bundle: Bundle, how: CheckFlags) -> Sample:
    """What has to be there for a run: a text, and memory."""
    from capt_local.cli.doctor import fit
    from capt_local.cli.options import ModelFlags
    from capt_local.cli.session import load_options

    sample = read_sample(how.sample)
    flags = ModelFlags(gpu_layers=how.gpu_layers, threads=how.threads)
    fit(bundle, load_options(flags, bundle)).check()
    return sample


def _brought(
    plan: Plan, incoming: Incoming, what: FromFlags, how: CheckFlags, screen: Screen
) -> tuple[Put, dict[str, Any]]:
    """The files in the folder of the bundle, looked at, and what is known of them."""
    from capt_local.bundle.creating import put_together
    from capt_local.bundle.members import members
    from capt_local.cli.models.show import described
    from capt_local.cli.models.travel import examine
    from capt_local.runtime.tokenizers import check_tokenizers

    try:
        with incoming.guarded():
            put = put_together(
                plan.bundle,
                incoming.folder,
                templates=plan.templates,
                copy=what.copy,
                report=lambda name, part: screen.progress(f"reading {name}", part),
            )
        members(put.bundle)  # which knows models that are the same under two names
        examine(put.bundle, screen)
    finally:
        screen.clear_progress()
    check_tokenizers(put.bundle.models.values())
    facts = described(put.bundle)
    for expert, fit in facts["fit"].items():
        if not (fit["same_vocabulary"] or how.allow_misfit):
            refuse_misfit(f"The {expert} and its {fit['base']} do not fit")
    return put, facts


def _finished(
    bundle: Bundle, plan: Plan, facts: dict[str, Any], run: Measured | None, today: datetime.date
) -> Bundle:
    """The bundle with what has been found out."""
    from capt_local.engine.library import library

    title = bundle.title or _title(plan)
    tested = library().build_info().binding if run is not None else ""
    bundle = replace(bundle, title=title, tested_with=tested)
    return replace(bundle, card=card_of(bundle, plan.looks, facts, run, today))


def _title(plan: Plan) -> str:
    """What the files call the target and the first expert."""
    target, expert = (plan.looks[role].title for role in ("target", "expert"))
    return f"{target} with {expert}" if target and expert else plan.bundle.id


def _notes(put: Put, facts: dict[str, Any], run: Measured | None, what: FromFlags) -> Iterator[str]:
    """What the user should know of a bundle that was made."""
    models = put.bundle.models
    for role, model in models.items():
        if role != "target" and model.sha256 == models["target"].sha256:
            yield f"The target and the {role} are the same model."
    for expert, fit in facts["fit"].items():
        for name in ("vocabulary", "template", "quantization"):
            if not fit[f"same_{name}"]:
                yield (
                    f"The {expert} and its {fit['base']} differ in their {name}: the contrast "
                    "also holds that difference."
                )
    if put.linked:
        yield (
            f"{', '.join(put.linked)} share their bytes with the files that were given: do not "
            "write into those (--copy makes the bundle independent)."
        )
    if put.copied and not what.copy:
        yield (
            f"{', '.join(put.copied)} are copies: the files lie on another disk, or others may "
            "write them."
        )
    if run is not None:
        yield from run.findings()
