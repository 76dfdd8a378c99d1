"""What `capt-local eval` is asked to do: from flags to exams and a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capt_local.cli.options import SampleFlags, SideBySideFlags, option
from capt_local.cli.session import generate_options
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import UsageError
from capt_local.evaluate.runs.exam import ChoiceBy, Exam, Plan, shortened
from capt_local.evaluate.tasks.items import Kind
from capt_local.evaluate.tasks.shots import ShotsBy
from capt_local.evaluate.tasks.styles import Style, read_style, shows_examples
from capt_local.evaluate.tasks.task import Task, read_examples, read_task

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle

_STYLE = "zero-shot"


@dataclass(frozen=True, slots=True)
class EvalFlags:
    """Which tasks and methods, how items are asked, and where results go."""

    more_tasks: Annotated[
        list[Path] | None, typer.Argument(metavar="[TASK]...", help="More tasks, as --task.")
    ] = None
    task: Annotated[
        list[Path] | None,
        option(
            "--task",
            metavar="FILE|DIR",
            help="A task: a JSON Lines file, or a folder with a task.toml; several are possible.",
        ),
    ] = None
    methods: Annotated[
        str | None,
        option(
            "--methods",
            metavar="A,B,...",
            help="Methods to compare. Default: target and capt.",
        ),
    ] = None
    against: Annotated[
        Method,
        option(
            "--against",
            metavar="METHOD",
            help="The method that intervals are against, which is always run. Default: target.",
        ),
    ] = Method.TARGET
    style: Annotated[
        str | None,
        option(
            "--style",
            metavar="NAME|FILE",
            help="How items are asked. Default: as the task says, else zero-shot.",
        ),
    ] = None
    shots: Annotated[
        int | None,
        option("--shots", metavar="K", min=0, help="Examples to show. Default: as the style says."),
    ] = None
    shots_file: Annotated[
        Path | None,
        option(
            "--shots-file",
            metavar="FILE|DIR",
            help="A task to take the examples from. Default: those that the task's folder names.",
        ),
    ] = None
    shots_by: Annotated[
        ShotsBy | None,
        option("--shots-by", metavar="fixed|nearest", help="Which examples. Default: fixed."),
    ] = None
    samples: Annotated[
        int | None,
        option("--samples", metavar="N", min=1, help="Answers to an item; what most say counts."),
    ] = None
    choice: Annotated[
        ChoiceBy | None,
        option(
            "--choice",
            metavar="likelihood|likelihood-per-byte|constrained|free",
            help="How a classification is answered. Default: likelihood, but free where the "
            "style reads the answer from a text.",
        ),
    ] = None
    raw: Annotated[bool, option("--raw", help="Ask with plain text, without chat templates.")] = (
        False
    )
    limit: Annotated[
        int | None,
        option("--limit", metavar="N", min=1, help="Only N items of each task, drawn by --seed."),
    ] = None
    max_input_bytes: Annotated[
        int | None,
        option("--max-input-bytes", metavar="N", min=1, help="Cut inputs to their first N bytes."),
    ] = None
    results: Annotated[
        Path | None,
        option(
            "--results",
            metavar="FILE",
            help="Keep every result here as it is done, and go on from there after a stop. Holds "
            "ids and figures, no text.",
        ),
    ] = None
    log_samples: Annotated[
        Path | None,
        option(
            "--log-samples",
            metavar="FILE",
            help="Write every answer here. This file holds patient text if the tasks do (mode "
            "0600).",
        ),
    ] = None
    csv: Annotated[
        Path | None, option("--csv", metavar="FILE", help="Write the table here as CSV.")
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False

    @property
    def places(self) -> tuple[Path, ...]:
        """All tasks, in the order of the command line, as far as that can be known."""
        return (*(self.task or ()), *(self.more_tasks or ()))

    @property
    def names(self) -> list[str] | None:
        """What --methods names, known methods or not; None where it was not given."""
        return None if self.methods is None else [n.strip() for n in self.methods.split(",")]


def read_exams(what: EvalFlags, seed: int) -> tuple[Exam, ...]:
    """Reads tasks, styles and examples.

    Raises:
        UsageError: one of them is not as it should be, or they do not go together.
    """
    if not what.places:
        raise UsageError("There is no task. Give at least one with --task.")
    examples = None
    if what.shots_file is not None:
        whole = read_task(what.shots_file, what="The file of --shots-file")
        # Cut as the questions are, so that a question is still known among its examples.
        examples = shortened(whole, what.max_input_bytes)[0]
    exams = []
    for number, place in enumerate(what.places, 1):
        task = read_task(place, limit=what.limit, seed=seed, what=f"Task {number}")
        task, cut = shortened(task, what.max_input_bytes)
        own = partial(read_examples, place, what=f"Task {number}")
        style = None if task.kind is Kind.PERPLEXITY else _style(what, task, examples, own)
        exams.append(Exam(task, style, cut))
    _check_used(what, exams)
    return tuple(exams)


def _style(
    what: EvalFlags, task: Task, examples: Task | None, own: Callable[[], Task | None]
) -> Style:
    which = what.style or task.style or _STYLE
    wanted = shows_examples(which) if what.shots is None else what.shots > 0
    # The folder of a task may name examples, which need not be there for a style without any.
    if examples is None and wanted and (found := own()) is not None:
        examples = shortened(found, what.max_input_bytes)[0]
    return read_style(
        which,
        examples=examples,
        shots=what.shots,
        by=what.shots_by,
        samples=what.samples,
    )


def _check_used(what: EvalFlags, exams: Sequence[Exam]) -> None:
    """Refuses flags that would do nothing."""
    styles = [exam.style for exam in exams if exam.style is not None]
    if what.shots_file is not None and not any(style.shots for style in styles):
        raise UsageError(
            "--shots-file is not used: give --shots K, or a style that shows examples."
        )
    if what.shots_by is not None and not any(style.shots for style in styles):
        raise UsageError("--shots-by needs examples: give --shots-file.")


def make_plan(
    what: EvalFlags,
    bundle: Bundle,
    how: SideBySideFlags,
    sample: SampleFlags,
    exams: Sequence[Exam],
) -> Plan:
    """How answers are made.

    Raises:
        UsageError: a method is unknown or comes twice, or a value has no meaning.
    """
    methods = _methods(what.names, bundle, what.against)
    longer = dataclasses.replace(sample, temp=sample.temp or 0.0)
    plan = Plan(
        methods={
            method.value: _stepwise(
                generate_options(bundle, dataclasses.replace(how, method=method), longer, 0)
            )
            for method in methods
        },
        choice=what.choice,
        raw=what.raw,
        max_tokens=sample.max_tokens,
        temperature=sample.temp,
    )
    plan.check(exams)
    return plan


def _stepwise(options: GenerateOptions) -> GenerateOptions:
    """Without drafts, so that a run that was stopped goes on to the last bit as it would have."""
    return dataclasses.replace(options, speed=Speed.EXACT_STEPS)


def _methods(given: list[str] | None, bundle: Bundle, against: Method) -> list[Method]:
    """The methods in the order of the command line, in front what they are held against.

    Raises:
        UsageError: a name is no method's, or comes twice.
    """
    if given is None:
        given = ["target", "capt"] if "expert" in bundle.models else ["target"]
    known = {method.value: method for method in Method}
    found: list[Method] = []
    for number, name in enumerate(given, 1):
        method = known.get(name)
        if method is None:
            raise UsageError(f"Number {number} of --methods is none; there are {', '.join(known)}.")
        if method in found:
            raise UsageError(f"--methods names {method} twice.")
        found.append(method)
    return found if against in found else [against, *found]
