"""What `capt-local bench` is asked to measure, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from capt_local.cli.options import option
from capt_local.errors import UsageError

PROMPT_TOKENS, REPETITIONS = 512, 5


@dataclass(frozen=True, slots=True)
class BenchFlags:
    """What is measured on, and how it is told."""

    modes: Annotated[
        str | None,
        option(
            "--modes",
            metavar="A,B,...",
            help="Only these; llama is the target through llama-cpp-python itself. Default: all.",
        ),
    ] = None
    prompts: Annotated[
        list[Path] | None,
        option(
            "--prompts",
            metavar="FILE|DIR",
            help='Measure on these: a task of eval, JSON Lines with a "prompt" or "text" each, or '
            "one text; several are possible. Default: an invented text of --prompt-tokens tokens.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        option("--limit", metavar="N", min=1, help="Only the first N prompts of each file."),
    ] = None
    max_input_bytes: Annotated[
        int | None,
        option("--max-input-bytes", metavar="N", min=1, help="Cut inputs to their first N bytes."),
    ] = None
    raw: Annotated[
        bool, option("--raw", help="Go on with the prompts as they are, without a template.")
    ] = False
    prompt_tokens: Annotated[
        int | None,
        option(
            "--prompt-tokens",
            metavar="N",
            min=1,
            help=f"Length of the invented text. Default: {PROMPT_TOKENS}, as pp{PROMPT_TOKENS}.",
        ),
    ] = None
    repetitions: Annotated[
        int | None,
        option(
            "-r",
            "--repetitions",
            metavar="N",
            min=1,
            help=f"How often the invented text is answered. Default: {REPETITIONS}.",
        ),
    ] = None
    parallel: Annotated[
        int | None,
        option(
            "--parallel",
            metavar="N",
            min=2,
            help="Also answer N prompts side by side, against the same one at a time.",
        ),
    ] = None
    record: Annotated[
        Path | None,
        option(
            "--record",
            metavar="FILE",
            help="Do not measure, but write how these answers come about, in numbers (mode 0600).",
        ),
    ] = None
    replay: Annotated[
        str | None,
        option(
            "--replay",
            metavar="FILE|60|75|87",
            help="Drive the models through such a file, or through answers of which so many "
            "percent of choices are the target's own: all is computed, nothing is chosen.",
        ),
    ] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False

    def check(self) -> None:
        """Refuses flags that would do nothing.

        Raises:
            UsageError: there are such.
        """
        if self.replay is not None and (bool(self.prompts) or self.record is not None):
            raise UsageError("--replay has its own prompts: leave out --prompts and --record.")
        if self.record is not None and (self.modes is not None or self.json):
            raise UsageError("--record measures nothing: leave out --modes and --json.")
        if bool(self.prompts) and (self.prompt_tokens or self.repetitions) is not None:
            raise UsageError(
                "--prompt-tokens and -r are about the invented text; leave out --prompts."
            )
        if self.parallel is not None and (not self.prompts or self.record is not None):
            raise UsageError("--parallel measures on different prompts: give --prompts.")
        if not self.prompts:
            self._check_without_prompts()

    def _check_without_prompts(self) -> None:
        given = {
            "--limit": None if self.replay is not None else self.limit,
            "--max-input-bytes": self.max_input_bytes,
            "--raw": self.raw or None,
        }
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is about the prompts of --prompts; give these too.")
