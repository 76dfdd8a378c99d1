"""Flags of the form of an answer and of the reasoning before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

from capt_local.cli.files import decoded
from capt_local.cli.options import option
from capt_local.decoding.options import GenerateOptions, Structure
from capt_local.decoding.step import Step
from capt_local.errors import UsageError
from capt_local.report.terminal import Screen

_LARGEST = 1 << 20  # bytes; both kinds of file have a smaller limit of their own


@dataclass(frozen=True, slots=True)
class StructureFlags:
    """Which form the answer must have."""

    json_schema: Annotated[
        Path | None,
        option(
            "--json-schema",
            metavar="PATH",
            help="A JSON schema: the answer is an instance of it (docs/answers.md).",
        ),
    ] = None
    grammar_file: Annotated[
        Path | None,
        option(
            "--grammar-file",
            metavar="PATH",
            help="A grammar in llama.cpp's GBNF: the answer is a text of it.",
        ),
    ] = None


def structure(flags: StructureFlags) -> Structure | None:
    """The form that the flags name, checked; None where they name none. Needs no model.

    Raises:
        UsageError: both are given, or the file cannot be read or used. Errors quote nothing of it.
    """
    if flags.json_schema is not None and flags.grammar_file is not None:
        raise UsageError("Give either --json-schema or --grammar-file.")
    if flags.json_schema is not None:
        name = "The schema (--json-schema)"
        from capt_local.decoding.structured import schema_structure

        return schema_structure(decoded(_bytes(flags.json_schema, name), name).encode(), name)
    if flags.grammar_file is not None:
        name = "The grammar (--grammar-file)"
        text = decoded(_bytes(flags.grammar_file, name), name)
        from capt_local.llama.grammar import check_grammar

        check_grammar(text, name)
        return Structure(text)
    return None


def _bytes(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > _LARGEST:
        raise UsageError(f"{name} is larger than {_LARGEST >> 10} KiB.")
    return data


Writer = Callable[[bytes], None]


class ReasoningDisplay(StrEnum):
    """How reasoning is shown, on standard error."""

    SHOW = "show"
    DIM = "dim"
    HIDE = "hide"


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ProxyReasoningFlags:
    """For models that reason before they answer."""

    expert_in_thoughts: Annotated[
        Switch,
        option(
            "--expert-in-thoughts",
            twin="EXPERT_IN_THOUGHTS",
            metavar="on|off",
            help="Whether expert and base read the reasoning and take part in it. Default: off.",
        ),
    ] = Switch.OFF

    def added(self, options: GenerateOptions, form: Structure | None) -> GenerateOptions:
        """The options with these flags and the form of the answer."""
        on = self.expert_in_thoughts is Switch.ON
        return replace(options, structure=form, expert_in_thoughts=on)


@dataclass(frozen=True, slots=True)
class ReasoningFlags(ProxyReasoningFlags):
    """The same where the output is shown as it is made."""

    thoughts: Annotated[
        ReasoningDisplay | None,
        option(
            "--thoughts",
            twin="THOUGHTS",
            metavar="show|dim|hide",
            help="How the model's reasoning is shown, on standard error. Default: dim on a "
            "terminal, else hide.",
        ),
    ] = None


def reasoning_writer(flags: ReasoningFlags, screen: Screen) -> Writer | None:
    """What writes reasoning on standard error; None where it is hidden."""
    default = ReasoningDisplay.DIM if screen.asides_on_terminal else ReasoningDisplay.HIDE
    display = flags.thoughts or default
    if display is ReasoningDisplay.HIDE:
        return None
    return partial(screen.thought, dim=display is ReasoningDisplay.DIM)


def step_writer(answer: Writer | None, reasoning: Writer | None) -> Callable[[Step], None]:
    """What writes the text of each step."""

    def write(step: Step) -> None:
        writer = reasoning if step.thought else answer
        if writer is not None:
            writer(step.piece_bytes)

    return write
