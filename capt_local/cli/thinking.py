"""What becomes of a model's thoughts: where they are shown, and who has a say in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Annotated

from capt_local.cli.options import option
from capt_local.decoding.options import GenerateOptions, Structure
from capt_local.decoding.step import Step
from capt_local.report.terminal import Screen

Tell = Callable[[bytes], None]


class Shown(StrEnum):
    """How thoughts are shown, on standard error."""

    SHOW = "show"
    DIM = "dim"
    HIDE = "hide"


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class QuietThoughtFlags:
    """For models that think before they answer, where nobody watches."""

    expert_in_thoughts: Annotated[
        Switch,
        option(
            "--expert-in-thoughts",
            twin="EXPERT_IN_THOUGHTS",
            metavar="on|off",
            help="Whether expert and base read the thoughts and have a say in them. Default: off.",
        ),
    ] = Switch.OFF

    def added(self, options: GenerateOptions, form: Structure | None) -> GenerateOptions:
        """The options with what these flags say, and the form of the answer."""
        on = self.expert_in_thoughts is Switch.ON
        return replace(options, structure=form, expert_in_thoughts=on)


@dataclass(frozen=True, slots=True)
class ThoughtFlags(QuietThoughtFlags):
    """The same where somebody does."""

    thoughts: Annotated[
        Shown | None,
        option(
            "--thoughts",
            twin="THOUGHTS",
            metavar="show|dim|hide",
            help="How the model's thoughts are shown, on standard error. Default: dim on a "
            "terminal, else hide.",
        ),
    ] = None


def thinking(flags: ThoughtFlags, screen: Screen) -> Tell | None:
    """What shows thoughts; None where they are hidden."""
    shown = flags.thoughts or (Shown.DIM if screen.asides_on_terminal else Shown.HIDE)
    return None if shown is Shown.HIDE else partial(screen.thought, dim=shown is Shown.DIM)


def teller(show: Tell | None, think: Tell | None) -> Callable[[Step], None]:
    """Shows each step in its way."""

    def tell(step: Step) -> None:
        said = think if step.thought else show
        if said is not None:
            said(step.piece_bytes)

    return tell
