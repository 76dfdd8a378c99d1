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

_QUESTIONS = (
    "What is the most likely diagnosis?",
    "Write a short clinical note about this visit.",
)
_MAX_TOKENS = 64
_CLOSING = (
    "The two answers start from the same prompt. At each token the target's probabilities are "
    "shifted by what",
    "the clinical expert thinks likelier than the general model that it was trained from; where "
    "that changed the",
    "choice, the token is marked. These are tiny models made to show the method: what they say "
    "is not medical",
    "advice and often wrong. The visit is invented.",
)


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
    asked = [read_prompt(prompt)] if own else _visit_questions(screen)
    bundle = find_bundle(model)
    if sample.max_tokens is None:
        sample = dataclasses.replace(sample, max_tokens=_MAX_TOKENS)
    options = dataclasses.replace(generate_options(bundle, how, sample, top=3), method=Method.CAPT)
    with Interrupt() as interrupt:
        session = open_session(bundle, model, screen, interrupt)
        with session.runtime:
            finished = all(_compare(session, one, options, raw=prompt.raw) for one in asked)
    if not finished:
        return ExitCode.INTERRUPTED
    _lines(screen, _CLOSING)
    return ExitCode.OK


def visit() -> str:
    """The dialogue that travels with the package; written for it, about nobody."""
    return (resources.files("capt_local") / "data" / "demo_visit.txt").read_text("utf-8")


def _visit_questions(screen: Screen) -> list[Asked]:
    text = visit()
    _lines(screen, ["A visit (fictitious, written for this demo):", ""])
    _lines(screen, [f"  {line}" for line in text.splitlines()])
    return [[Message("user", f"{text}\n{question}")] for question in _QUESTIONS]


def _compare(session: Session, asked: Asked, options: GenerateOptions, *, raw: bool) -> bool:
    """Shows both answers to one prompt.

    Returns:
        False when Ctrl-C ended it.
    """
    screen = session.screen
    screen.line()
    if not isinstance(asked, str):
        _lines(screen, ["Question:", f"  {asked[-1].content.splitlines()[-1]}", ""])
    _lines(screen, ["The target alone:"])
    alone = answer_to(session, asked, dataclasses.replace(options, method=Method.TARGET), raw=raw)
    _show_answer(screen, alone)
    if alone.finish is FinishReason.INTERRUPTED:
        return False
    marks = "bold and underlined" if screen.style_out else "in [brackets]"
    _lines(screen, ["", f"Target, expert and base together (what the expert changed is {marks}):"])
    together = answer_to(session, asked, options, raw=raw)
    _show_answer(screen, together)
    table = shift_table(together.steps) or ["The expert changed no token."]
    _lines(screen, ["", "Largest shifts (probabilities; contrast in nats):"])
    _lines(screen, [f"  {line}" for line in table])
    return together.finish is not FinishReason.INTERRUPTED


def _show_answer(screen: Screen, answer: Answer) -> None:
    marked = marked_text(answer.steps)
    # Continuation lines are indented like the first, so that the answer stands apart.
    indented = tuple(Span(span.text.replace("\n", "\n  "), span.marked) for span in marked)
    screen.show((Span("  "), *indented))
    screen.line(f"  ({summary_line(answer)})")
    screen.notes(warnings(answer) if not answer.text.strip() else [])


def _lines(screen: Screen, lines: Iterable[str]) -> None:
    for line in lines:
        screen.line(line)
