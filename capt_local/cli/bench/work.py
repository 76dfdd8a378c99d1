"""What `capt-local bench` measures on: prompts, an invented text, or a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capt_local.cli.bench.flags import PROMPT_TOKENS, REPETITIONS, BenchFlags
from capt_local.errors import UsageError
from capt_local.evaluate.speed.questions import Question, read_questions, standard_text
from capt_local.evaluate.speed.replay.files import read_trace
from capt_local.evaluate.speed.replay.synthetic import SHARES, synthetic
from capt_local.evaluate.speed.replay.trace import Trace, Walked
from capt_local.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured on.

    Attributes:
        questions: at least one.
        most: tokens of the longest answer.
        invented: whether they are a text of our own, again and again.
        trace: what the models are driven through; None: they choose themselves.
        parallel: prompts that are also answered side by side.
    """

    questions: Sequence[Question]
    most: int
    invented: bool = False
    trace: Trace | None = None
    parallel: int | None = None

    @property
    def kind(self) -> str:
        """For a script."""
        if self.trace is not None:
            return "replay"
        return "invented text" if self.invented else "prompts"


def given_questions(what: BenchFlags) -> list[Question]:
    """The prompts of the user; none where there is no --prompts.

    Raises:
        UsageError: they cannot be read.
    """
    found: list[Question] = []
    several = len(what.prompts or ()) > 1
    for number, path in enumerate(what.prompts or (), 1):
        name = f"File {number} of --prompts" if several else "The file of --prompts"
        found += read_questions(
            path, name, limit=what.limit, size=what.max_input_bytes, raw=what.raw
        )
    return found


def given_trace(what: BenchFlags, most: int, *, cut: bool) -> Trace | None:
    """The trace of --replay; None without.

    Args:
        what: the flags.
        most: tokens of answers by chance.
        cut: whether answers of a file are cut to as many, too.

    Raises:
        UsageError: it cannot be read, or flags have no place with it.
    """
    if what.replay is None:
        return None
    percent = what.replay.removesuffix("%").strip()
    if percent in map(str, SHARES):
        if what.limit is not None:
            raise UsageError(f"-r says how many answers --replay {percent} has; leave out --limit.")
        return synthetic(
            int(percent),
            answers=what.repetitions or REPETITIONS,
            prompt=what.prompt_tokens or PROMPT_TOKENS,
            steps=most,
        )
    if what.prompt_tokens is not None or what.repetitions is not None:
        raise UsageError("The trace says how long its prompts are, and how many.")
    trace = read_trace(Path(what.replay), "The trace of --replay")
    answers = trace.answers[: what.limit]
    if cut:
        answers = tuple(Walked(one.prompt, one.places[:most]) for one in answers)
    return Trace(trace.source, answers)


def standard_questions(runtime: Runtime, what: BenchFlags) -> list[Question]:
    """The same invented text again and again, so that the spread is that of the machine.

    Raises:
        UsageError: it does not fit into the context of the target.
    """
    target = runtime.models["target"]
    wanted = what.prompt_tokens or PROMPT_TOKENS
    if wanted >= target.context_limit:
        raise UsageError(
            f"A prompt of {wanted} tokens leaves no room for an answer in a context of "
            f"{target.context_limit}: give a larger --ctx-size or a smaller --prompt-tokens."
        )
    text = standard_text(lambda data: len(target.tokenize(data, special=False)), wanted)
    return [Question(text, raw=True)] * (what.repetitions or REPETITIONS)
