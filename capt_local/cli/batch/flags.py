"""How a batch run goes: its output, its parts, how much at once, and what is told of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.options import option
from capt_local.errors import UsageError

AUTO = "auto"
_SHORTEST_SILENCE = 3  # seconds
_MOST = 255  # sequences that llama.cpp can hold in one context, one kept back


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Where answers go, which records are taken, and how many at once."""

    output: Annotated[
        Path | None,
        option(
            "-o",
            "--output",
            metavar="PATH",
            help="Write a line for each record here (mode 0600). The same command goes on with it.",
        ),
    ] = None
    parallel: Annotated[
        str,
        option(
            "--parallel",
            twin="PARALLEL",
            metavar="N|auto",
            help="Records answered at once. Default: auto, by memory and cores.",
        ),
    ] = AUTO
    limit: Annotated[
        int | None, option("--limit", metavar="N", min=1, help="At most N records in this run.")
    ] = None
    retry_errors: Annotated[
        bool, option("--retry-errors", help="Do records that have failed again.")
    ] = False
    fail_fast: Annotated[
        bool, option("--fail-fast", help="Stop at the first record that fails.")
    ] = False
    force_new: Annotated[
        bool,
        option("--force-new", help="Move an output that is there aside, and begin a new one."),
    ] = False
    in_order: Annotated[
        bool,
        option("--in-order", help="At the end, put the output into the order of the input."),
    ] = False
    record_timeout: Annotated[
        int,
        option(
            "--record-timeout",
            twin="RECORD_TIMEOUT",
            metavar="SECONDS",
            min=0,
            help="End a worker that computes nothing for so long, and fail the record that it "
            "hangs on. Default: 1800; 0 never does.",
        ),
    ] = 1800
    check: Annotated[
        bool,
        option(
            "--check",
            help="Check flags, input and output, tell what there is to do, and leave: no model is "
            "loaded and nothing written.",
        ),
    ] = False

    @property
    def at_once(self) -> int | None:
        """How many records at once; None for auto.

        Raises:
            UsageError: it is no number.
        """
        if self.parallel == AUTO:
            return None
        text = self.parallel
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST):
            raise UsageError(f"--parallel takes a number from 1 to {_MOST}, or auto.")
        return int(text)

    @property
    def patience(self) -> float:
        """Seconds that a worker may hang.

        Raises:
            UsageError: a worker that is well may be silent for so long.
        """
        if 0 < self.record_timeout < _SHORTEST_SILENCE:
            raise UsageError(
                f"--record-timeout is at least {_SHORTEST_SILENCE} seconds, or 0: a worker that is "
                "well may be silent for a while."
            )
        return self.record_timeout or math.inf


@dataclass(frozen=True, slots=True)
class AfterFlags:
    """What is told of the run."""

    json: Annotated[
        bool, option("--json", twin="JSON", help="Write the summary to standard output as JSON.")
    ] = False
    summary: Annotated[
        Path | None, option("--summary", metavar="FILE", help="Write it here, likewise.")
    ] = None
    logprobs: Annotated[
        bool,
        option("--logprobs", twin="LOGPROBS", help="Keep the log-probability of each token."),
    ] = False
    top_logprobs: Annotated[
        int,
        option(
            "--top-logprobs",
            twin="TOP_LOGPROBS",
            metavar="N",
            min=0,
            max=100,
            help="And N candidates of each model for each token.",
        ),
    ] = 0
    audit: Annotated[
        Path | None,
        option(
            "--audit",
            twin="AUDIT",
            metavar="FILE",
            help="Append start and end of the run to this log: digests and counts, no text.",
        ),
    ] = None
