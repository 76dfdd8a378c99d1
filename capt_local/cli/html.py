"""The report of an answer as a file, for the verbs that can write one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.options import option
from capt_local.cli.output import OutputFile
from capt_local.config.limits import Feature
from capt_local.report.json import Answer

TOP = 3
"""Candidates of each model that a report tells."""


@dataclass(frozen=True, slots=True)
class ReportFlags:
    """Whether a report is written, and what is beside the answer in it."""

    html: Annotated[
        Path | None,
        option(
            "--html",
            metavar="PATH",
            help="Write what the expert changed as one HTML page here (mode 0600).",
        ),
        Feature.REPORTS,
    ] = None
    with_target: Annotated[
        bool,
        option("--with-target", help="The target's own answer to the same prompt beside it."),
    ] = False


class ReportFile:
    """The place of a report, tried out before anything is computed.

    Args:
        path: of the file.

    Raises:
        UsageError: the file cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        self._file = OutputFile(path, "The report (--html)")

    def write(self, answer: Answer, alone: Answer | None = None) -> None:
        """Writes the page, whole or not at all.

        Raises:
            UsageError: the disk is full, or the folder has gone.
        """
        from capt_local.report.html import page

        self._file.write(page(answer, alone))
