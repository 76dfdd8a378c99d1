"""`capt-local demo`: a question about a fictitious note, the target alone and all together."""

from __future__ import annotations

import dataclasses
from importlib import resources

from capt_local.cli.exits import ExitCode, Interrupt
from capt_local.cli.options import CombineFlags, ModelFlags, SampleFlags, ViewFlags
from capt_local.cli.session import (
    doubts,
    find_bundle,
    generate_options,
    hidden_answer_to,
    open_session,
)
from capt_local.decoding.options import Method
from capt_local.decoding.step import FinishReason
from capt_local.prompting.messages import Message
from capt_local.report.answers import DRAFT, summary_line, views
from capt_local.report.json import REPORTED
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Prose, Span

QUESTION = "What brought the patient to the hospital?"
_MAX_TOKENS = 128
_CLOSING = Prose.of(
    "Both answers come from the same prompt. The patient is invented, and the models are small: "
    "what they write is often wrong and is not medical advice. The note and the question were "
    "chosen since the difference is easy to see in them; how often the three are better, and how "
    "often not, was measured: docs/results.md. Your own text: capt-local generate -f note.txt "
    "--with-target --html report.html"
)


def demo(model: ModelFlags, how: CombineFlags, sample: SampleFlags, view: ViewFlags) -> int:
    """A fictitious note and a question: the target's own answer, and that of all three models.

    With another bundle: the same by your own models.
    """
    return play(Screen.standard(view.verbose), model, how, sample)


def play(screen: Screen, model: ModelFlags, how: CombineFlags, sample: SampleFlags) -> int:
    """Plays the demo on a screen and returns the exit code.

    Raises:
        UsageError, ModelError, MemoryShortage: see `open_session`.
    """
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = generate_options(bundle, how, sample, REPORTED, Method.CAPT)
    target = dataclasses.replace(options, method=Method.TARGET)
    screen.notes(doubts(options))
    note = demo_note()
    asked = [Message("user", f"{note}\n\n{QUESTION}")]
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            title = "The note of a visit (fictitious, written for this demo)"
            screen.show(DRAFT, Pane(title, (Span(note),)), Prose.of(QUESTION, strong=True))
            alone = hidden_answer_to(session, "the target alone", asked, target)
            if alone.finish is FinishReason.INTERRUPTED:
                return ExitCode.INTERRUPTED
            together = hidden_answer_to(session, "all three together", asked, options)
    for answer in (alone, together):
        screen.detail(summary_line(answer))
    # The notices of the bundle have been shown when it was opened.
    own = together.notices[len(session.runtime.notices) :]
    screen.show(*views(dataclasses.replace(together, alone=alone, notices=own))[1:], _CLOSING)
    return ExitCode.INTERRUPTED if together.finish is FinishReason.INTERRUPTED else ExitCode.OK


def demo_note() -> str:
    """The note that travels with the package, written for it about nobody."""
    return (resources.files("capt_local") / "data" / "demo_note.txt").read_text("utf-8").strip()
