"""The options that verbs share, each defined once, in groups of one concern.

A default of None means: what the bundle says, else the default of the decoder. Each option that
is a setting has an environment twin CAPT_LOCAL_*. The prompt and the files of one call have none:
the environment is inherited by everything that is started later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from capt_local.align.kinds import Align
from capt_local.decode.options import Method


def option(*names: str, help: str, twin: str = "", metavar: str | None = None, **more: Any) -> Any:
    """A Typer option; `twin` is the end of the name of its environment variable."""
    envvar = f"CAPT_LOCAL_{twin}" if twin else None
    return typer.Option(
        *names,
        help=help,
        envvar=envvar,
        metavar=metavar,
        show_default=False,
        show_envvar=False,
        **more,
    )


@dataclass(frozen=True, slots=True)
class PromptFlags:
    """What is asked."""

    prompt: Annotated[
        str | None,
        option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="The prompt; '-' reads standard input. Other accounts of this machine can see "
            "the arguments of a process: for patient text use -f or standard input.",
        ),
    ] = None
    file: Annotated[
        Path | None,
        option("-f", "--file", metavar="PATH", help="A UTF-8 file that holds the prompt."),
    ] = None
    system: Annotated[
        str | None,
        option("--system", twin="SYSTEM", metavar="TEXT", help="The system text."),
    ] = None
    raw: Annotated[
        bool,
        option("--raw", twin="RAW", help="Go on with the text as it is, without a template."),
    ] = False


class OwnTextFlags(PromptFlags):
    """What is asked instead of a text that is there anyway."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class MethodFlags:
    """How the three models are combined."""

    method: Annotated[
        Method | None,
        option(
            "--method",
            twin="METHOD",
            metavar="NAME",
            help="capt: all together; expert-led: the same over the expert's tokens; target, "
            "expert, base: one alone; capt-paper, unite, proxy-tuning, contrastive: published "
            "methods. Default: the bundle's, else capt.",
        ),
    ] = None
    alpha: Annotated[
        str | None,
        option(
            "--alpha",
            twin="ALPHA",
            metavar="NUMBER[,...]|evidence",
            help="Weight of the contrast, one for all pairs or one for each; 'evidence' weighs "
            "the models by how well they explain the prompt. Default: the bundle's, else evidence.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        option(
            "--weights",
            twin="WEIGHTS",
            metavar="A,B,C",
            help="Fixed weights of target, expert and base instead: T^A * E^B / B^C.",
        ),
    ] = None
    alignment: Annotated[
        Align | None,
        option(
            "--alignment",
            twin="ALIGNMENT",
            metavar="NAME",
            help="How vocabularies are joined: projection (default), exact (slow), prefix-mass, "
            "first-piece, capt-paper (to compare).",
        ),
    ] = None
    plausibility: Annotated[
        float | None,
        option(
            "--plausibility",
            twin="PLAUSIBILITY",
            metavar="P",
            help="Never say a token below this share of the target's best. Default: 1e-5.",
        ),
    ] = None
    no_healing: Annotated[
        bool,
        option(
            "--no-healing",
            twin="NO_HEALING",
            help="Take the last piece of expert and base as it stands (for comparison).",
        ),
    ] = False
    no_long_tokens: Annotated[
        bool,
        option(
            "--no-long-tokens",
            twin="NO_LONG_TOKENS",
            help="No say for expert and base on tokens longer than their pieces (likewise).",
        ),
    ] = False


class SideBySideFlags(MethodFlags):
    """The same for verbs that run several methods, so that none can be chosen."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SampleFlags:
    """How tokens are drawn, and when the answer ends."""

    max_tokens: Annotated[
        int | None,
        option(
            "-n",
            "--max-tokens",
            twin="MAX_TOKENS",
            metavar="N",
            help="Most tokens of the answer. Default: the bundle's, else 512.",
        ),
    ] = None
    temp: Annotated[
        float | None,
        option(
            "--temp",
            twin="TEMP",
            metavar="T",
            help="Temperature; 0 takes the likeliest. Default: 0.",
        ),
    ] = None
    top_k: Annotated[
        int, option("--top-k", twin="TOP_K", metavar="K", help="Keep the K likeliest; 0: all.")
    ] = 0
    top_p: Annotated[
        float,
        option("--top-p", twin="TOP_P", metavar="P", help="Keep the likeliest up to this mass."),
    ] = 1.0
    min_p: Annotated[
        float,
        option("--min-p", twin="MIN_P", metavar="P", help="Keep those above this share of best."),
    ] = 0.0
    repeat_penalty: Annotated[
        float,
        option(
            "--repeat-penalty",
            twin="REPEAT_PENALTY",
            metavar="X",
            help="Above 1: say less often what was just said. Default: 1.",
        ),
    ] = 1.0
    repeat_last_n: Annotated[
        int,
        option(
            "--repeat-last-n",
            twin="REPEAT_LAST_N",
            metavar="N",
            help="Tokens that the repetition penalty looks back. Default: 64.",
        ),
    ] = 64
    seed: Annotated[
        int,
        option("-s", "--seed", twin="SEED", metavar="N", help="Of the random draws. Default: 0."),
    ] = 0
    stop: Annotated[
        list[str] | None,
        option("--stop", metavar="TEXT", help="Ends the answer; may be given several times."),
    ] = None


@dataclass(frozen=True, slots=True)
class OutputFlags:
    """Where the answer goes, and in which form."""

    output: Annotated[
        Path | None,
        option("-o", "--output", metavar="PATH", help="Write the answer here (mode 0600)."),
    ] = None
    json: Annotated[
        bool, option("--json", twin="JSON", help="Write a JSON object instead of the text.")
    ] = False
    top_logprobs: Annotated[
        int,
        option(
            "--top-logprobs",
            twin="TOP_LOGPROBS",
            metavar="N",
            min=0,
            max=100,
            help="Candidates of each model for each token, with --json.",
        ),
    ] = 0


@dataclass(frozen=True, slots=True)
class ViewFlags:
    """How much is told on standard error."""

    verbose: Annotated[
        int,
        option("-v", "--verbose", twin="VERBOSE", count=True, help="Tell more on standard error."),
    ] = 0
