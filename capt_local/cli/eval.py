"""`capt-local eval`: tasks under methods, side by side. The flags; the work is in `eval_run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from capt_local.cli.options import (
    BestOfFlags,
    CombineFlags,
    ModelFlags,
    SampleFlags,
    StructureFlags,
    ViewFlags,
    flag,
    setting,
)
from capt_local.decoding.options import Method
from capt_local.evaluate import ChoiceBy


@dataclass(frozen=True, slots=True)
class EvalFlags:
    """Which tasks and methods, how items are asked, and where results go."""

    more_tasks: Annotated[
        list[Path] | None, typer.Argument(metavar="[TASK]...", help="More tasks, as --task.")
    ] = None
    task: Annotated[
        list[Path] | None,
        flag(
            "--task FILE|DATASET=PATH",
            "A task: a JSON Lines file, or files of mednli, mednli-words, radqa, clip or "
            "clip-questions (docs/tasks.md); several are possible.",
        ),
    ] = None
    methods: Annotated[
        str | None,
        flag("--methods A,B,...", "Methods to compare. Default: target and capt."),
    ] = None
    against: Annotated[
        Method,
        flag(
            "--against METHOD",
            "The method that intervals are against, which is always run. Default: target.",
        ),
    ] = Method.TARGET
    shots: Annotated[
        int,
        flag("--shots K", "Examples to show (--shots-file). Default: 0.", min=0),
    ] = 0
    shots_file: Annotated[
        Path | None,
        flag(
            "--shots-file FILE|DATASET=PATH",
            "A task to take the examples from: the first ones that are not the question.",
        ),
    ] = None
    choice: Annotated[
        ChoiceBy,
        flag(
            "--choice likelihood|likelihood-per-byte|free",
            "How a classification is answered. Default: likelihood.",
        ),
    ] = ChoiceBy.LIKELIHOOD
    raw: Annotated[bool, flag("--raw", "Ask with plain text, without chat templates.")] = False
    limit: Annotated[
        int | None,
        flag("--limit N", "Only N items of each task, drawn by --seed.", min=1),
    ] = None
    max_input_bytes: Annotated[
        int | None,
        flag("--max-input-bytes N", "Cut inputs to their first N bytes.", min=1),
    ] = None
    results: Annotated[
        Path | None,
        flag(
            "--results FILE",
            "Add every result to this file as it is done, and go on from there after a stop. "
            "Holds ids and figures, no text.",
        ),
    ] = None
    log_samples: Annotated[
        Path | None,
        flag(
            "--log-samples FILE",
            "Write every answer here. This file holds patient text if the tasks do (mode 0600).",
        ),
    ] = None
    json: Annotated[bool, setting("--json", "Write a JSON object.")] = False

    @property
    def places(self) -> tuple[Path, ...]:
        """All tasks, in the order of the command line, as far as that can be known."""
        return (*(self.task or ()), *(self.more_tasks or ()))

    @property
    def names(self) -> list[str] | None:
        """What --methods names, known methods or not; None where it was not given."""
        return None if self.methods is None else [n.strip() for n in self.methods.split(",")]


def eval(
    what: EvalFlags,
    model: ModelFlags,
    how: CombineFlags,
    sample: SampleFlags,
    several: BestOfFlags,
    form: StructureFlags,
    view: ViewFlags,
) -> int:
    """Tasks under several methods in one table, with 95 % intervals of what they gain.

    Classifications have accuracy and macro-F1, generations ROUGE (or, with "measure": "fields" and
    --json-schema, each field of a JSON object), prose bits per byte. Intervals
    are paired bootstraps over items, against the target alone or another method. An item that does
    not fit into the context is counted as failed; nothing is cut unless --max-input-bytes says so.
    Answers are as long as the task allows, at temperature 0, unless -n and --temp say otherwise.

    Examples:
      capt-local eval --task pubmedqa.jsonl --methods target,capt

      capt-local eval --task notes.jsonl --task mednli=mli_test_v1.jsonl --results run.jsonl

      capt-local eval --task rqe.jsonl --methods target,expert,capt --best-of 8 --scorer scorer

      capt-local eval --task rqe.jsonl --shots 4 --shots-file rqe-train.jsonl --limit 50
    """
    # Imported here: the help needs none of it.
    from capt_local.cli.eval_run import run_eval

    return run_eval(what, model, how, sample, several, form.structure(), view)
