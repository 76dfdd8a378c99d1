"""What a record is: one prompt with an id, and what it sets for itself.

A record comes from a `Source` (see `sources`), which has checked the whole input before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capt_local.decoding.options import GenerateOptions
from capt_local.errors import CaptError, UsageError
from capt_local.prompting.messages import Message

SHOWN = 20  # problems of an input that are told one by one


class InputErrors(UsageError):
    """Lines of the input are wrong; nothing was loaded. The message is one line.

    Attributes:
        problems: the first of them, as sentences without a full stop: "line 3: not JSON".
        total: how many lines are wrong.
    """

    def __init__(self, what: str, unit: str, problems: Sequence[str], total: int) -> None:
        self.problems = tuple(problems)
        self.total = total
        told = "; ".join(self.problems)
        more = total - len(self.problems)
        rest = f"; and {more} more {unit}{'s' if more > 1 else ''}" if more else ""
        super().__init__(f"{what}: {told}{rest}. No model was loaded.")


class InputChanged(CaptError):
    """A record is no longer what was checked: its bytes are others, or cannot be read."""


class TemplateFailed(CaptError):
    """A record that was good when it was checked is not filled in now: time or memory ran out."""


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """What a record sets for itself; None: as the run has it.

    Attributes:
        max_tokens: most tokens of the answer.
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest that together reach this probability.
        seed: of the draws, instead of the one that is made from the run's and the id.
        stop: strings that end the answer.
        logprobs: whether the output holds log-probabilities.
        top_logprobs: candidates for each token, with log-probabilities alone.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def applied(self, options: GenerateOptions) -> GenerateOptions:
        """The options of the run with what the record sets.

        Raises:
            UsageError: they do not go together, or a value has no meaning.
        """
        drawn = _given(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        whole = _given(max_tokens=self.max_tokens, stop=self.stop, top=self.top_logprobs)
        sample = dataclasses.replace(options.sample, **drawn)
        return dataclasses.replace(options, sample=sample, **whole)


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as it is put to the models.

    Attributes:
        number: of its line (of a table: the line where its row begins; of a folder: which file
            in the order of names), from 1.
        id: 1 to 200 printable characters, no two alike in an input.
        custom_id: the same where the line is one of OpenAI's batches, else None.
        prompt: a text that is the user's (or, asked for as raw, is gone on with), or a
            conversation that ends with the user's turn.
        settings: its own.
        digest: SHA-256 of its bytes in the input, in hexadecimal. It is a hash of patient text:
            for comparing within a run, not for logs.
    """

    number: int
    id: str
    custom_id: str | None
    prompt: str | tuple[Message, ...]
    settings: RecordSettings
    digest: str


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
