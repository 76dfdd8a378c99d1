"""How the steps of an answer are computed; the answer is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from capt_local.cli.options import option
from capt_local.decode.options import GenerateOptions, Speed


@dataclass(frozen=True, slots=True)
class SpeedFlags:
    """How fast, for verbs that write one answer at a time."""

    speed: Annotated[
        Speed,
        option(
            "--speed",
            twin="SPEED",
            metavar="NAME",
            help="auto: drafts that all models check at once, where they pay; lookup, "
            "target-draft, expert-draft: always that draft; exact-steps: none. The answer is the "
            "same. Default: auto.",
        ),
    ] = Speed.AUTO

    def at(self, options: GenerateOptions) -> GenerateOptions:
        """The options with this speed."""
        return replace(options, speed=self.speed)
