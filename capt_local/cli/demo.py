"""`capt-local demo`: a fictitious visit, the target alone and the three models together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources

from capt_local.cli.exits import ExitCode
from capt_local.cli.files import Asked, read_prompt
from capt_local.cli.options import (
    MethodFlags,
    ModelFlags,
    OwnTextFlags,
    PromptFlags,
    SampleFlags,
    SideBySideFlags,
    ViewFlags,
)
from capt_local.cli.session import Session, answer_to, find_bundle, generate_options, open_session
from capt_local.cli.signals import Interrupt
from capt_local.decoding.options import GenerateOptions, Method
from capt_local.decoding.step import FinishReason
from capt_local.errors import UsageError
from capt_local.prompt.messages import Message
from capt_local.report.answers import LEGEND_BESIDE, answers, figures, summary_line
from capt_local.report.json import Answer, warnings
from capt_local.report.terminal import Screen
from capt_local.report.views import Pane, Prose, Span

# In the words that the demo models were trained on; they are too small to understand others.
_TASK = "Write the clinical note for this visit."
_MAX_TOKENS = 32
_CLOSING = Prose.of(
    "Both answers start from the same prompt; at each token the log-probabilities of the three "
    "are summed with these weights. The models are tiny and made to show the method: what they say "
    "is not medical advice and often wrong. The visit is invented."
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that is asked, and how it is introduced.

    Attributes:
        asked: the question, or a text to go on with.
        raw: whether it is the latter.
        title: of what is shown before.
        shown: what the reader has to know.
        question: what is asked, for the reader.
    """

    asked: Asked
    raw: bool = False
    title: str = ""
    shown: str = ""
    question: str = ""


def demo(
    model: ModelFlags,
    prompt: OwnTextFlags,
    how: SideBySideFlags,
    sample: SampleFlags,
    view: ViewFlags,
) -> int:
    """A fictitious visit: what the target says alone, what the three say together.

    With -p, -f or another bundle: the same for your own text and models.
    """
    if how.method is not None:
        raise UsageError("demo shows the target and capt side by side; --method has no place here.")
    return play(Screen.standard(view.verbose), model, prompt, how, sample)


def play(
    screen: Screen,
    model: ModelFlags,
    prompt: PromptFlags,
    how: MethodFlags,
    sample: SampleFlags,
) -> int:
    """Plays the demo on a screen and returns the exit code.

    Raises:
        UsageError, ModelError, MemoryShortage: see `open_session` and `read_prompt`.
    """
    own = prompt.prompt is not None or prompt.file is not None
    if not own and (prompt.raw or prompt.system is not None):
        raise UsageError("--raw and --system go with a text of your own: give it with -p or -f.")
    scenes = [Scene(read_prompt(prompt), raw=prompt.raw)] if own else _scenes()
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = dataclasses.replace(generate_options(bundle, how, sample, top=3), method=Method.CAPT)
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            finished = all(_compare(session, scene, options) for scene in scenes)
    if not finished:
        return ExitCode.INTERRUPTED
    screen.show(LEGEND_BESIDE, _CLOSING)
    return ExitCode.OK


def visit() -> str:
    """The dialogue that travels with the package; written for it, about nobody."""
    return _text("demo_visit.txt").strip()


def _text(name: str) -> str:
    return (resources.files("capt_local") / "data" / name).read_text("utf-8")


def _scenes() -> list[Scene]:
    """What the demo shows: a visit to summarize, and the beginning of a note to go on with."""
    note = _text("demo_note.txt")
    return [
        Scene(
            [Message("user", f"{_TASK}\n\n{visit()}")],
            title="A visit (fictitious, written for this demo)",
            shown=visit(),
            question=f"Question: {_TASK}",
        ),
        Scene(
            note,
            raw=True,
            title="The beginning of a note (fictitious, written for this demo)",
            shown=note,
            question="Task: go on with the text as it is, without a chat template",
        ),
    ]


def _compare(session: Session, scene: Scene, options: GenerateOptions) -> bool:
    """Shows both answers to one prompt.

    Returns:
        False when Ctrl-C ended it.
    """
    screen, asked, raw = session.screen, scene.asked, scene.raw
    if scene.shown:
        screen.show(Pane(scene.title, (Span(scene.shown),)))
        screen.show(Prose.of(scene.question, strong=True))
    own = dataclasses.replace(options, method=Method.TARGET)
    alone = _answer(session, "the target alone", asked, own, raw=raw)
    if alone.finish is FinishReason.INTERRUPTED:
        return False
    together = _answer(session, "all three together", asked, options, raw=raw)
    screen.show(answers(alone, together), figures(together))
    _tell(session, alone)
    _tell(session, together)
    return together.finish is not FinishReason.INTERRUPTED


def _answer(
    session: Session, label: str, asked: Asked, options: GenerateOptions, *, raw: bool
) -> Answer:
    """One answer, with a progress line while it is made."""
    screen, done = session.screen, 0

    def told(_: bytes) -> None:
        nonlocal done
        done += 1
        screen.progress(label, done / options.max_tokens)

    screen.progress(label, 0.0)
    try:
        return answer_to(session, asked, options, raw=raw, show=told)
    finally:
        screen.clear_progress()


def _tell(session: Session, answer: Answer) -> None:
    """What there is to say about an answer, on standard error."""
    screen = session.screen
    screen.detail(summary_line(answer))
    # The notices of the bundle have been told when it was opened.
    screen.notes(answer.notices[len(session.runtime.notices) :])
    # That an answer was cut is no news here: the demo keeps them short, and the line says so.
    if answer.finish is not FinishReason.LENGTH or not answer.text.strip():
        screen.notes(warnings(answer))
