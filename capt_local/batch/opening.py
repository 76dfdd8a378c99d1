"""What a worker is told before it loads the models."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from capt_local.bundle.manifest import Bundle
from capt_local.bundle.verify import Check
from capt_local.decoding.options import GenerateOptions
from capt_local.engine.options import LoadOptions


@dataclass(frozen=True, slots=True)
class Opening:
    """Which models, how they are loaded, and what all records of a run share.

    Attributes:
        bundle: as the run found it, digests included, so that a worker that is started again
            cannot load something else.
        options: of answers; each record may change some (see `asks`).
        load: how the models are loaded.
        date: what the templates take for today, as YYYY-MM-DD.
        check: how the digests are checked.
        raw: whether prompts are text to go on with.
        parallel: how many records are answered at once.
    """

    bundle: Bundle
    options: GenerateOptions = field(default_factory=GenerateOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    date: str = ""
    check: Check = Check.CACHED
    raw: bool = False
    parallel: int = 1

    @property
    def day(self) -> datetime.date | None:
        """The date as such."""
        return datetime.date.fromisoformat(self.date) if self.date else None
