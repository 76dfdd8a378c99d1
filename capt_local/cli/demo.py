"""`capt-local demo`: a question about a fictitious note, the target alone and all together."""

from __future__ import annotations

import dataclasses
from importlib import resources

from capt_local.cli.exits import ExitCode
from capt_local.cli.files import Asked, read_prompt
from capt_local.cli.options import CombineFlags, ModelFlags, SampleFlags, TextFlags, ViewFlags
from capt_local.cli.session import (
    Session,
    answer_to,
    doubts,
    find_bundle,
    generate_options,
    open_session,
)
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.step import FinishReason
from capt_local.prompting.messages import Message
from capt_local.report.answers import (
    DRAFT,
    LEGEND,
    both,
    figure_views,
    in_plain_words,
    summary_line,
)
from capt_local.report.json import REPORTED, Answer, warnings
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Prose, Span

QUESTION = "What brought the patient to the hospital?"
_MAX_TOKENS = 128
_CLOSING = Prose.of(
    "Both answers come from the same prompt. The patient is invented, and the models are small: "
    "what they write is often wrong and is not medical advice. The note and the question were "
    "chosen since the difference is easy to see in them; how often the three are better, and how "
    "often not, was measured: docs/results.md. Your own text: capt-local demo -f note.txt"
)


def demo(
    model: ModelFlags, prompt: TextFlags, how: CombineFlags, sample: SampleFlags, view: ViewFlags
) -> int:
    """A fictitious note and a question: the target's own answer, and that of all three models.

    With -p, -f or another bundle: the same for your own text and models.
    """
    return play(Screen.standard(view.verbose), model, prompt, how, sample)


def play(
    screen: Screen, model: ModelFlags, prompt: TextFlags, how: CombineFlags, sample: SampleFlags
) -> int:
    """Plays the demo on a screen and returns the exit code.

    Raises:
        UsageError, ModelError, MemoryShortage: see `open_session` and `read_prompt`.
    """
    own = prompt.prompt is not None or prompt.file is not None
    note = demo_note()
    asked = (
        read_prompt(prompt.prompt, prompt.file).asked
        if own
        else [Message("user", f"{note}\n\n{QUESTION}")]
    )
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = generate_options(bundle, how, sample, REPORTED, Method.CAPT)
    screen.notes(doubts(options))
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            screen.show(DRAFT)
            if not own:
                title = "The note of a visit (fictitious, written for this demo)"
                screen.show(Pane(title, (Span(note),)), Prose.of(QUESTION, strong=True))
            target = dataclasses.replace(options, method=Method.TARGET)
            alone = _answer(session, "the target alone", asked, target)
            if alone.finish is FinishReason.INTERRUPTED:
                return ExitCode.INTERRUPTED
            together = _answer(session, "all three together", asked, options)
    screen.show(both(alone, together), in_plain_words(together), *figure_views(together))
    for answer in (alone, together):
        screen.detail(summary_line(answer))
        # The notices of the bundle have been shown when it was opened.
        screen.notes(answer.notices[len(session.runtime.notices) :])
        # The demo's answers are short, and the line below each says that one was ended.
        if answer.finish is not FinishReason.LENGTH or not answer.text.strip():
            screen.notes(warnings(answer))
    if together.finish is FinishReason.INTERRUPTED:
        return ExitCode.INTERRUPTED
    screen.show(*([LEGEND] if own else [LEGEND, _CLOSING]))
    return ExitCode.OK


def demo_note() -> str:
    """The note that travels with the package, written for it about nobody."""
    return (resources.files("capt_local") / "data" / "demo_note.txt").read_text("utf-8").strip()


def _answer(session: Session, label: str, asked: Asked, options: GenerateOptions) -> Answer:
    """One answer, with a progress line while it is made."""
    screen, done = session.screen, 0

    def show(_: bytes) -> None:
        nonlocal done
        done += 1
        screen.progress(label, done / options.max_tokens)

    screen.progress(label, 0.0)
    try:
        return answer_to(session, asked, options, show=show)
    finally:
        screen.clear_progress()
