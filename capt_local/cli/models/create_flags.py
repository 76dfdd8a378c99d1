"""The options of `models create`. What describes one bundle has no twin in the environment."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from capt_local.cli.options import gpu_layers_option, option, threads_option
from capt_local.errors import UsageError

ALL = ""
_ROLE = re.compile(r"(?:target|(?:expert|base)(?:-[0-9]+)?)(?:\.adapter)?")


def _model(name: str, help: str) -> Any:
    return option(name, metavar="GGUF|BUNDLE:ROLE", help=help)


@dataclass(frozen=True, slots=True)
class FromFlags:
    """Of what a bundle is made, and where it goes."""

    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="A short name for the bundle.", show_default=False),
    ]
    target: Annotated[
        str | None, _model("--target", "The target: a file, or a model of a bundle that is here.")
    ] = None
    expert: Annotated[
        list[str] | None,
        _model("--expert", "The clinical expert, likewise; once for each of several pairs."),
    ] = None
    base: Annotated[
        list[str] | None,
        _model("--base", "What the expert was trained from; in the order of the experts."),
    ] = None
    expert_adapter: Annotated[
        list[str] | None,
        option(
            "--expert-adapter",
            metavar="GGUF[=SCALE]",
            help="A LoRA adapter for each expert; without --expert, of the base.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="The folder that is made. Default: in the user's own store.",
        ),
    ] = None
    copy: Annotated[
        bool,
        option("--copy", help="Copy every file; else those that only you can change are linked."),
    ] = False
    replace: Annotated[
        bool, option("--replace", help="Take the place of a bundle that is there already.")
    ] = False


@dataclass(frozen=True, slots=True)
class AboutFlags:
    """What the manifest says."""

    version: Annotated[
        str, option("--version", metavar="N.N", help="Of the bundle. Default: 1.")
    ] = "1"
    title: Annotated[str, option("--title", metavar="TEXT", help="One line for people.")] = ""
    description: Annotated[str, option("--description", metavar="TEXT", help="For people.")] = ""
    licence: Annotated[
        list[str] | None,
        option(
            "--licence",
            metavar="[ROLE=]TEXT",
            help="Of all models, or of one. Default: what their files say.",
        ),
    ] = None
    source: Annotated[
        list[str] | None,
        option("--source", metavar="[ROLE=]TEXT", help="Where they come from, likewise."),
    ] = None
    template: Annotated[
        list[str] | None,
        option(
            "--template",
            metavar="[ROLE=]NAME|ROLE|FILE",
            help="A chat template instead of the file's own: plain, chatml, that of another role, "
            "or a Jinja file.",
        ),
    ] = None
    ctx_size: Annotated[
        int | None,
        option(
            "-c",
            "--ctx-size",
            metavar="N",
            min=1,
            help="Tokens of context. Default: what all models were trained for, at most 4096.",
        ),
    ] = None
    alpha: Annotated[
        str,
        option(
            "--alpha",
            metavar="NUMBER[,...]|evidence",
            help="The bundle's weight of the contrast. Default: evidence.",
        ),
    ] = "evidence"
    plausibility: Annotated[
        float | None, option("--plausibility", metavar="P", help="The bundle's, likewise.")
    ] = None
    temp: Annotated[float | None, option("--temp", metavar="T", help="Likewise.")] = None
    max_tokens: Annotated[
        int | None, option("-n", "--max-tokens", metavar="N", help="Likewise.")
    ] = None
    review_by: Annotated[
        str | None,
        option(
            "--review-by",
            metavar="YYYY-MM-DD",
            help="When somebody has to look at it again. Default: in a year.",
        ),
    ] = None
    card: Annotated[
        Path | None,
        option("--card", metavar="FILE", help='TOML with texts of the card: key = "text".'),
    ] = None


@dataclass(frozen=True, slots=True)
class CheckFlags:
    """How the models are tried out."""

    sample: Annotated[
        Path | None,
        option(
            "--sample",
            metavar="FILE",
            help="A text of your own to measure on; nothing of it is kept. Default: an invented "
            "note.",
        ),
    ] = None
    no_run: Annotated[
        bool, option("--no-run", help="Do not run the models; the bundle says so.")
    ] = False
    allow_misfit: Annotated[
        bool,
        option("--allow-misfit", help="Take expert and base with different vocabularies."),
    ] = False
    gpu_layers: Annotated[str, gpu_layers_option()] = "auto"
    threads: Annotated[int | None, threads_option()] = None
    json: Annotated[bool, option("--json", twin="JSON", help="Write JSON.")] = False


def by_role(values: Sequence[str], names: Collection[str], flag: str) -> dict[str, str]:
    """What was said as ROLE=TEXT by role, and under "" what was said of all.

    Raises:
        UsageError: a text is empty, something is said twice, or of a role that is not there.
    """
    found: dict[str, str] = {}
    for value in values:
        role, equals, text = value.partition("=")
        if not equals or not _ROLE.fullmatch(role):
            role, text = ALL, value
        elif role not in names:
            raise UsageError(f"{flag} names {role}, but the bundle has only {', '.join(names)}.")
        if not text.strip() or not text.isprintable():
            raise UsageError(f"{flag} is empty, or holds more than plain text.")
        if role in found:
            raise UsageError(f"{flag} is given twice for {role or 'all models'}.")
        found[role] = text
    return found
