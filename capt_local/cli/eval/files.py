"""The files that `capt-local eval` keeps while it runs: the journal and the answers."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capt_local.cli.eval.settings import fingerprint
from capt_local.cli.eval.setup import EvalFlags
from capt_local.cli.files import OutputFile
from capt_local.cli.options import ModelFlags
from capt_local.cli.session import load_options, pinned_date
from capt_local.errors import UsageError
from capt_local.evaluate.runs.harness import Finished
from capt_local.evaluate.runs.journal import Journal
from capt_local.evaluate.runs.result import LASTING, Result
from capt_local.evaluate.runs.samples import SampleLog

if TYPE_CHECKING:
    from capt_local.bundle.manifest import Bundle


@dataclass(frozen=True, slots=True)
class Kept:
    """Where finished items go besides the table, as far as that was asked for.

    Attributes:
        model: the flags, with the day that chat templates take for today: the whole run has one,
            also where it goes over midnight or is resumed on another day.
    """

    model: ModelFlags
    journal: Journal | None
    samples: SampleLog | None

    @property
    def results(self) -> list[Result]:
        """Those of earlier runs; what failed for a passing reason is tried again."""
        done = self.journal.done if self.journal else []
        return [result for result in done if not result.failed or result.failed in LASTING]

    def add(self, finished: Finished) -> None:
        """Keeps an item. The answers first: an item that has a result has its answers too."""
        if self.samples is not None:
            self.samples.append(finished)
        if self.journal is not None:
            self.journal.append(finished.result)


def open_table(what: EvalFlags) -> OutputFile | None:
    """The file for the table, which takes the place of what is there.

    Raises:
        UsageError: it cannot be written, or it is a file that the run reads or keeps.
    """
    if what.csv is None:
        return None
    table = what.csv.resolve()
    style = Path(what.style) if what.style is not None else None
    others = (*what.places, what.shots_file, style, what.results, what.log_samples)
    for other in others:
        if other is None:
            continue
        place = other.resolve()
        inside = table.exists() and place.is_dir() and table.is_relative_to(place)
        same = table.exists() and place.exists() and table.samefile(place)
        if table == place or inside or same:
            raise UsageError(
                "The table (--csv) would replace a file that this run reads or keeps. Name "
                "another one."
            )
    return OutputFile(what.csv, "The table (--csv)")


def open_kept(
    what: EvalFlags,
    bundle: Bundle,
    model: ModelFlags,
    chosen: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> Kept:
    """Opens the files that were asked for.

    Args:
        what: names them.
        bundle: that answers.
        model: how it is loaded.
        chosen: see `eval_settings.settings`.
        stack: closes them.

    Raises:
        UsageError: a file cannot be written, or is of another run.
        ModelError: a model without a digest cannot be read.
    """
    load, date = load_options(model, bundle), pinned_date(model)
    journal = stack.enter_context(Journal(what.results)) if what.results else None
    before = journal.fingerprint if journal else None
    today = str(before.get("date")) if before and date is None else None
    shown = date.isoformat() if date else today or datetime.date.today().isoformat()
    if journal is not None:
        journal.begin(fingerprint(chosen, bundle, load, shown))
    samples = None
    if what.log_samples is not None:
        if what.results is not None and what.log_samples.absolute() == what.results.absolute():
            raise UsageError("--results and --log-samples name the same file.")
        samples = stack.enter_context(SampleLog(what.log_samples, resumed=before is not None))
    return Kept(dataclasses.replace(model, date=shown), journal, samples)
