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
        Path | None,
        option(
            "--prompts",
            metavar="FILE|DIR",
            help='Measure on these: a task of eval, JSON Lines with a "prompt" or "text" each, or '
            "one text. Default: an invented text of --prompt-tokens tokens.",
        ),
    ] = None
    limit: Annotated[
        int | None, option("--limit", metavar="N", min=1, help="Only the first N prompts.")
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
    json: Annotated[bool, option("--json", twin="JSON", help="Write a JSON object.")] = False

    def check(self) -> None:
        """Refuses flags that would do nothing.

        Raises:
            UsageError: there are such.
        """
        if self.prompts is None:
            given = {
                "--limit": self.limit,
                "--max-input-bytes": self.max_input_bytes,
                "--raw": self.raw or None,
            }
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"{name} is about the prompts of --prompts; give these too.")
        elif self.prompt_tokens is not None or self.repetitions is not None:
            raise UsageError(
                "--prompt-tokens and -r are about the invented text; leave out --prompts."
            )
