"""`capt-local models create`: a bundle of models that lie anywhere, tried out before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capt_local.bundle.card import KEYS
from capt_local.cli.exits import ExitCode
from capt_local.cli.models.create_flags import AboutFlags, CheckFlags, FromFlags
from capt_local.cli.models.verb import mebibytes, named
from capt_local.cli.options import ViewFlags
from capt_local.cli.policy import check_unsigned
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Span, Table

if TYPE_CHECKING:
    from capt_local.cli.models.create_measure import Measured
    from capt_local.cli.models.create_work import Made


def models_create(what: FromFlags, about: AboutFlags, how: CheckFlags, view: ViewFlags) -> int:
    """Makes a bundle of a target, an expert and its base, after trying them out.

    Each file is loaded in a process of its own; expert and base must have one vocabulary; the three
    answer a question and predict a text at several weights. What is found is shown, and stands in
    the card; the rest of the card is yours to fill in. The files that were given stay where they
    are.

    Examples:
      capt-local models create heart --target qwen.gguf --expert med.gguf --base llama.gguf

      capt-local models create heart --target qwen.gguf --base demo:base --expert-adapter lora.gguf
    """
    from capt_local.cli.models.create_work import made
    from capt_local.cli.models.travel import is_found

    check_unsigned("A bundle that models create makes, which nobody has signed,")
    screen = Screen.standard(view.verbose)
    found = made(what, about, how, screen)
    if how.json:
        screen.line(dumps(as_object(found), indent=2))
        return ExitCode.OK
    screen.show(*as_views(found))
    screen.notes((*found.notes, *found.bundle.notices))
    blank = sum(key not in found.bundle.card for key in KEYS)
    screen.line(f"{named(found.bundle)} is made: {found.bundle.folder}")
    screen.line(f"Its card has {blank} headings that are yours to fill in, in its bundle.toml.")
    by_id = what.output is None and is_found(found.bundle)
    name = found.bundle.id if by_id else found.bundle.folder
    screen.line(f"Use it with: capt-local generate -m {name}")
    return ExitCode.OK


def as_views(found: Made) -> list[Table | Pane]:
    """What was found, for people."""
    bundle, models = found.bundle, found.facts["models"]
    rows = tuple(
        (
            role,
            models[role]["architecture"],
            models[role]["quantization"],
            mebibytes(model.size),
            "linked" if model.path.name in found.put.linked else "copied",
            model.licence + (f"; adapter: {model.adapter.licence}" if model.adapter else ""),
        )
        for role, model in bundle.models.items()
    )
    heads = ("role", "architecture", "quantisation", "size", "file", "licence")
    views: list[Table | Pane] = [Table("Models", rows, heads, (3,))]
    for expert, fit in found.facts["fit"].items():
        told = tuple(
            (name.replace("_", " "), _told(value)) for name, value in fit.items() if name != "base"
        )
        views.append(Table(f"How {expert} and {fit['base']} fit", told))
    return [*views, *_run_views(found.run)] if found.run is not None else views


def as_object(found: Made) -> dict[str, Any]:
    """What was found, for programs."""
    bundle, run = found.bundle, found.run
    return {
        "id": bundle.id,
        "version": bundle.version,
        "place": str(bundle.folder),
        "licence": bundle.licence,
        "review_by": bundle.review_by,
        "models": found.facts["models"],
        "fit": found.facts["fit"],
        "linked": list(found.put.linked),
        "copied": list(found.put.copied),
        "measured": None if run is None else _run_object(run),
        "card_to_be_filled_in": [key for key in KEYS if key not in bundle.card],
        "notices": [*found.notes, *bundle.notices],
    }


def _run_views(run: Measured) -> list[Table | Pane]:
    from capt_local.cli.models.create_measure import QUESTION

    rows = tuple(
        (name, "not known" if bits is None else f"{bits:.3f}") for name, bits in run.bits.items()
    )
    answer = run.answer.text.decode("utf-8", "replace")
    foot = f"{run.answer.tokens} tokens; nobody has looked whether it is right"
    return [
        Table(f"Bits per byte of {run.sample}", rows, ("how", "bits per byte"), (1,)),
        Pane(f"Asked: {QUESTION}", (Span(answer),), foot),
    ]


def _run_object(run: Measured) -> dict[str, Any]:
    from capt_local.cli.models.create_measure import QUESTION

    return {
        "sample": {"bytes": run.sample.size, "own": run.sample.own},
        "bits_per_byte": dict(run.bits),
        "question": QUESTION,
        "answer": run.answer.text.decode("utf-8", "replace"),
        "tokens": run.answer.tokens,
        "finish_reason": str(run.answer.finish),
    }


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{100 * value:.0f} % of the target's pieces" if isinstance(value, float) else str(value)
