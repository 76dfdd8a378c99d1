"""`capt-local demo`: a question about a fictitious note, the target alone and all together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources

from capt_local.cli.exits import ExitCode
from capt_local.cli.files import Asked, read_prompt
from capt_local.cli.options import (
    CombineFlags,
    ModelFlags,
    SampleFlags,
    TextFlags,
    ViewFlags,
)
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
    bars,
    both,
    in_plain_words,
    shift_table,
    summary_line,
)
from capt_local.report.json import Answer, warnings
from capt_local.report.terminal import Screen
from capt_local.report.views import Beside, Pane, Prose, Span, View

QUESTION = "What brought the patient to the hospital?"
_MAX_TOKENS = 128
_CLOSING = Prose.of(
    "Both answers come from the same prompt. The patient is invented, and the models are small: "
    "what they write is often wrong and is not medical advice. The note and the question were "
    "chosen since the difference is easy to see in them; how often the three are better, and how "
    "often not, was measured: docs/results.md. Your own text: capt-local demo -f note.txt"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is asked, and what a reader sees of it.

    Attributes:
        asked: the conversation, or raw text to continue.
        raw: whether it is the latter.
        note: the text that the question is about; empty for a text of the user's own.
        question: as a reader sees it.
    """

    asked: Asked
    raw: bool = False
    note: str = ""
    question: str = ""


def demo(
    model: ModelFlags,
    prompt: TextFlags,
    how: CombineFlags,
    sample: SampleFlags,
    view: ViewFlags,
) -> int:
    """A fictitious note and a question: the target's own answer, and that of all three models.

    With -p, -f or another bundle: the same for your own text and models.
    """
    return play(Screen.standard(view.verbose), model, prompt, how, sample)


def play(
    screen: Screen,
    model: ModelFlags,
    prompt: TextFlags,
    how: CombineFlags,
    sample: SampleFlags,
) -> int:
    """Plays the demo on a screen and returns the exit code.

    Raises:
        UsageError, ModelError, MemoryShortage: see `open_session` and `read_prompt`.
    """
    own = prompt.prompt is not None or prompt.file is not None
    scene = Scene(read_prompt(prompt.prompt, prompt.file)) if own else our_scene()
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = dataclasses.replace(generate_options(bundle, how, sample, top=3), method=Method.CAPT)
    screen.notes(doubts(options))
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            finished = _compare(session, scene, options)
    if not finished:
        return ExitCode.INTERRUPTED
    screen.show(*([LEGEND] if own else [LEGEND, _CLOSING]))
    return ExitCode.OK


def our_scene() -> Scene:
    """The note that travels with the package, written for it about nobody, and the question."""
    note = (resources.files("capt_local") / "data" / "demo_note.txt").read_text("utf-8").strip()
    return Scene([Message("user", f"{note}\n\n{QUESTION}")], note=note, question=QUESTION)


def _compare(session: Session, scene: Scene, options: GenerateOptions) -> bool:
    """Shows both answers to one prompt; False when Ctrl-C ended it."""
    screen = session.screen
    screen.show(DRAFT)
    if scene.note:
        title = "The note of a visit (fictitious, written for this demo)"
        screen.show(Pane(title, (Span(scene.note),)), Prose.of(scene.question, strong=True))
    own = dataclasses.replace(options, method=Method.TARGET)
    alone = _answer(session, "the target alone", scene, own)
    if alone.finish is FinishReason.INTERRUPTED:
        return False
    together = _answer(session, "all three together", scene, options)
    screen.show(both(alone, together), in_plain_words(together), *_figures(together))
    for answer in (alone, together):
        screen.detail(summary_line(answer))
        # The notices of the bundle have been shown when it was opened.
        screen.notes(answer.notices[len(session.runtime.notices) :])
        # The demo keeps answers short, and the line below each says that one was ended.
        if answer.finish is not FinishReason.LENGTH or not answer.text.strip():
            screen.notes(warnings(answer))
    return together.finish is not FinishReason.INTERRUPTED


def _figures(answer: Answer) -> tuple[View, ...]:
    table, weights = shift_table(answer.steps), bars(answer.weights)
    if not table.rows:
        return ()
    return (Beside(table, weights),) if weights else (table,)


def _answer(session: Session, label: str, scene: Scene, options: GenerateOptions) -> Answer:
    """One answer, with a progress line while it is made."""
    screen, done = session.screen, 0

    def show(_: bytes) -> None:
        nonlocal done
        done += 1
        screen.progress(label, done / options.max_tokens)

    screen.progress(label, 0.0)
    try:
        return answer_to(session, scene.asked, options, raw=scene.raw, show=show)
    finally:
        screen.clear_progress()
