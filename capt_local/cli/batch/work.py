"""From the flags of `batch` to its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capt_local.batch.audit import AuditLog
from capt_local.batch.journal_place import check_place, would_be_read
from capt_local.batch.sources import Source
from capt_local.cli.batch.flags import AfterFlags, RunFlags
from capt_local.cli.batch.input import InputFlags
from capt_local.cli.batch.run import BatchRun, Plan
from capt_local.cli.batch.setup import Chosen, chosen, settled
from capt_local.cli.batch.told import Told
from capt_local.cli.exits import ExitCode
from capt_local.cli.files import OutputFile
from capt_local.cli.options import MethodFlags, ModelFlags, SampleFlags, ViewFlags
from capt_local.cli.signals import Signals
from capt_local.cli.structured import StructureFlags
from capt_local.cli.thinking import QuietThoughtFlags
from capt_local.errors import Cancelled, UsageError
from capt_local.report.json import dumps
from capt_local.report.terminal import Screen


@dataclass(frozen=True, slots=True)
class Groups:
    """All flags, as `batch` takes them."""

    what: InputFlags
    run: RunFlags
    model: ModelFlags
    how: MethodFlags
    sample: SampleFlags
    form: StructureFlags
    thought: QuietThoughtFlags
    after: AfterFlags
    view: ViewFlags

    def chosen(self) -> Chosen:
        """What they say, checked; see `batch_setup.chosen`."""
        return chosen(
            self.run, self.model, self.how, self.sample, self.form, self.thought, self.after
        )


def work(flags: Groups) -> int:
    """Does the run.

    Raises:
        CaptError: flags, input, output or models are not as they should be.
    """
    screen = Screen.standard(flags.view.verbose)
    told = Told(screen)
    what, after, said = flags.what, flags.after, flags.chosen()
    only = flags.run.check
    if only and after.summary:
        raise UsageError("--summary does not go with --check, which writes nothing.")
    file = OutputFile(after.summary, "The summary (--summary)") if after.summary else None
    plan = _plan(what, flags.run, said, after, told)
    with Signals() as signals:
        try:
            run = BatchRun(plan, told, signals)
            ended = run.check() if only else run.go()
        except Cancelled:
            told.note("interrupted; nothing was written.")
            return signals.code or ExitCode.INTERRUPTED
    text = dumps(ended.summary, indent=1)
    if file is not None:
        file.write(text + "\n")
    if after.json:
        screen.line(text)
    return ended.code


def _plan(what: InputFlags, run: RunFlags, flags: Chosen, after: AfterFlags, told: Told) -> Plan:
    """Checks the output's place and the whole input."""
    if run.output is None:
        raise UsageError("There is no output. Name a file with -o.")
    read = [what.place, what.system, what.template, flags.schema]
    check_place(run.output, [path for path in read if path is not None])
    _check_apart(run.output, read, after)
    _check_notes(what.place, after)
    fixed = settled(run.output, flags, new=run.force_new)
    audit = None if after.audit is None or run.check else AuditLog(after.audit)
    source = _source(what, flags, told)
    told.notes(source.notices)
    return Plan(run.output, run, flags, fixed, source, what.raw, audit)


def _check_apart(output: Path, read: Sequence[Path | None], after: AfterFlags) -> None:
    """Refuses a summary or an audit log in the place of the output, its company, or an input."""
    written = {"--summary": after.summary, "--audit": after.audit}
    others = {path.resolve() for path in read if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        place, own = path.resolve(), output.resolve()
        if place in {own, own.with_name(f"{own.name}.run.json")} | others:
            raise UsageError(f"{name} names a file that this run reads or writes otherwise.")
        others.add(place)


def _check_notes(place: Path, after: AfterFlags) -> None:
    """Refuses what the next run would read as a note."""
    for name, path in (("--summary", after.summary), ("--audit", after.audit)):
        if path is not None and would_be_read(path, place):
            raise UsageError(f"{name} names a .txt in the folder of the notes. Name it otherwise.")


def _source(what: InputFlags, flags: Chosen, told: Told) -> Source:
    def tell(share: float) -> None:
        told.fraction("checking the input", share)

    try:
        return what.check(what.place, options=flags.options, model=flags.bundle.id, progress=tell)
    finally:
        told.clear()
