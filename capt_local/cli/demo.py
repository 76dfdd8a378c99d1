"""`capt-local demo`: a fictitious visit, the target alone and the three models together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import resources

from capt_local.cli.exits import ExitCode
from capt_local.cli.interrupt import Interrupt
from capt_local.cli.options import MethodFlags, ModelFlags, PromptFlags, SampleFlags, ViewFlags
from capt_local.cli.prompts import Asked, read_prompt
from capt_local.cli.session import Session, answer_to, find_bundle, generate_options, open_session
from capt_local.decode.options import GenerateOptions, Method
from capt_local.decode.step import FinishReason
from capt_local.errors import UsageError
from capt_local.prompt.messages import Message
from capt_local.report.json import Answer, warnings
from capt_local.report.screen import Screen, Span
from capt_local.report.steps import marked_text, shift_table
from capt_local.report.summary import summary_line

# In the words that the demo models were trained on; they are too small to understand others.
_TASK = 'Summarize the conversation as the "GENHX" section of a clinical note.'
_QUESTION = "What are the symptoms of pneumonia?"
_MAX_TOKENS = 64
_CLOSING = """
Both answers start from the same prompt. At each token the target's probabilities are shifted by
what the expert finds likelier than the base; where that changed the choice, the token is marked.
These models are tiny and made to show the method: what they say is not medical advice and often
wrong. The visit is invented."""


def demo(
    model: ModelFlags,
    prompt: PromptFlags,
    how: MethodFlags,
    sample: SampleFlags,
    view: ViewFlags,
) -> int:
    """A fictitious visit: what the target says alone, what the three say together.

    With -p, -f or another bundle: the same for your own text and models.
    """
    screen = Screen.standard(view.verbose)
    if how.method is not None:
        raise UsageError("demo shows the target and capt side by side; --method has no place here.")
    own = prompt.prompt is not None or prompt.file is not None
    asked = [("", read_prompt(prompt))] if own else _prompts(screen)
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = dataclasses.replace(generate_options(bundle, how, sample, top=3), method=Method.CAPT)
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            finished = all(
                _compare(session, title, one, options, raw=prompt.raw) for title, one in asked
            )
    if not finished:
        return ExitCode.INTERRUPTED
    screen.line(_CLOSING)
    return ExitCode.OK


def visit() -> str:
    """The dialogue that travels with the package; written for it, about nobody."""
    return (resources.files("capt_local") / "data" / "demo_visit.txt").read_text("utf-8")


def _prompts(screen: Screen) -> list[tuple[str, Asked]]:
    """What is asked, with a title; shows the visit."""
    text = visit()
    _lines(screen, ["A visit (fictitious, written for this demo):", ""])
    _lines(screen, [f"  {line}" for line in text.splitlines()])
    return [
        (_TASK, [Message("user", f"{_TASK}\n\n{text.strip()}")]),
        (_QUESTION, [Message("user", _QUESTION)]),
    ]


def _compare(
    session: Session, title: str, asked: Asked, options: GenerateOptions, *, raw: bool
) -> bool:
    """Shows both answers to one prompt.

    Returns:
        False when Ctrl-C ended it.
    """
    screen = session.screen
    _lines(screen, ["", f"Question: {title}", ""] if title else [""])
    _lines(screen, ["The target alone:"])
    alone = answer_to(session, asked, dataclasses.replace(options, method=Method.TARGET), raw=raw)
    _show_answer(session, alone)
    if alone.finish is FinishReason.INTERRUPTED:
        return False
    marks = "bold and underlined" if screen.style_out else "in [brackets]"
    _lines(screen, ["", f"Target, expert and base together (what the expert changed is {marks}):"])
    together = answer_to(session, asked, options, raw=raw)
    _show_answer(session, together)
    table = shift_table(together.steps) or ["The expert changed no token."]
    _lines(screen, ["", "Largest shifts (probabilities; contrast in nats):"])
    _lines(screen, [f"  {line}" for line in table])
    return together.finish is not FinishReason.INTERRUPTED


def _show_answer(session: Session, answer: Answer) -> None:
    screen = session.screen
    marked = marked_text(answer.steps)
    # Continuation lines are indented like the first, so that the answer stands apart.
    indented = tuple(Span(span.text.replace("\n", "\n  "), span.marked) for span in marked)
    screen.show((Span("  "), *indented))
    screen.line(f"  ({summary_line(answer)})")
    # The notices of the bundle have been told when it was opened.
    screen.notes(answer.notices[len(session.runtime.notices) :])
    # That an answer was cut is no news here: the demo keeps them short, and the line says so.
    if answer.finish is not FinishReason.LENGTH or not answer.text.strip():
        screen.notes(warnings(answer))


def _lines(screen: Screen, lines: Iterable[str]) -> None:
    for line in lines:
        screen.line(line)
