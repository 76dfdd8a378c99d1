"""The options that verbs share, each defined once, in groups of one concern.

A default of None means: what the bundle says, else the default of the decoder. Each option that
is a setting has an environment twin CAPT_LOCAL_*. The prompt and the files of one call have none:
the environment is inherited by everything that is started later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capt_local.alignment import Align
from capt_local.bundles.verify import Check
from capt_local.decoding.options import GenerateOptions, Method, Speed
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.bundles.manifest import AdapterFile


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
        option(
            "-f",
            "--file",
            metavar="PATH",
            help="A UTF-8 file that holds the prompt; with -p, that text, a blank line and the "
            "file are the prompt.",
        ),
    ] = None
    system: Annotated[
        str | None,
        option("--system", twin="SYSTEM", metavar="TEXT", help="The system text."),
    ] = None
    raw: Annotated[
        bool,
        option("--raw", twin="RAW", help="Go on with the text as it is, without a template."),
    ] = False


@dataclass(frozen=True, slots=True)
class TemplateFlags:
    """Which chat template the target reads."""

    template: Annotated[
        str | None,
        option(
            "--template",
            metavar="NAME|FILE",
            help="A chat template for the target, and for models without one: plain, chatml, or a "
            "file (Jinja). Default: the bundle's, else the model's own.",
        ),
    ] = None

    def source(self) -> str | None:
        """The source of the template; None: the bundle's or the model's own.

        Raises:
            UsageError: it is no known name, and no file that can be read.
        """
        if self.template is None:
            return None
        from capt_local.prompting.template import given_template

        return given_template(self.template)


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
            help="capt: all together; expert-led: the same over the expert's tokens; duo: target "
            "and expert without a base; target, expert, base: one alone; capt-paper, "
            "capt-paper-raw, unite, unite-20, safe, proxy-tuning, contrastive: published methods. "
            "Default: the bundle's, else capt.",
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
            help="How vocabularies are joined: projection, capt-paper (to compare). Default: "
            "projection.",
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
    no_repetition_stop: Annotated[
        bool,
        option(
            "--no-repetition-stop",
            twin="NO_REPETITION_STOP",
            help="Let an answer run on that repeats itself without end.",
        ),
    ] = False
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


def verify_option() -> Any:
    """How the digests of models are checked; the default stands in the help of each verb."""
    return option(
        "--verify",
        twin="VERIFY",
        metavar="always|cached|never",
        help="Check the digests of the models: always reads the files; cached reads a file of an "
        "installed bundle once and then only if it has changed. Default: cached.",
    )


def gpu_layers_option() -> Any:
    """How much of the models goes to a GPU; the default is `auto`."""
    return option(
        "-ngl",
        "--gpu-layers",
        twin="GPU_LAYERS",
        metavar="N|auto|all",
        help="Layers on the GPU. Default: auto, as many as fit.",
    )


def threads_option() -> Any:
    """On how many threads a CPU computes."""
    return option(
        "-t",
        "--threads",
        twin="THREADS",
        metavar="N",
        min=1,
        help="CPU threads. Default: the cores that other programs leave free while it runs.",
    )


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """Which models, and how they are loaded."""

    bundle: Annotated[
        str | None,
        option(
            "-m",
            "--bundle",
            twin="BUNDLE",
            metavar="NAME|PATH",
            help="A bundle: its id, its folder or its bundle.toml. Default: demo.",
        ),
    ] = None
    target: Annotated[
        Path | None,
        option("--target", twin="TARGET", metavar="GGUF", help="The target model, for no bundle."),
    ] = None
    expert: Annotated[
        list[Path] | None,
        option(
            "--expert",
            twin="EXPERT",
            metavar="GGUF",
            help="The clinical expert, likewise; once for each of several pairs.",
        ),
    ] = None
    base: Annotated[
        list[Path] | None,
        option(
            "--base",
            twin="BASE",
            metavar="GGUF",
            help="What the expert was trained from, likewise; in the order of the experts.",
        ),
    ] = None
    expert_adapter: Annotated[
        list[Path] | None,
        option(
            "--expert-adapter",
            twin="EXPERT_ADAPTER",
            metavar="GGUF[=SCALE]",
            help="A LoRA adapter for each expert; without --expert, of the base.",
        ),
    ] = None
    verify: Annotated[Check | None, verify_option()] = None
    no_verify: Annotated[
        bool,
        option("--no-verify", twin="NO_VERIFY", help="The same as --verify never."),
    ] = False
    ctx_size: Annotated[
        int | None,
        option(
            "-c",
            "--ctx-size",
            twin="CTX_SIZE",
            metavar="N",
            min=1,
            help="Tokens that the context holds. Default: the bundle's.",
        ),
    ] = None
    gpu_layers: Annotated[str, gpu_layers_option()] = "auto"
    threads: Annotated[int | None, threads_option()] = None
    date: Annotated[
        str | None,
        option(
            "--date",
            twin="DATE",
            metavar="YYYY-MM-DD",
            help="The date that chat templates may tell. Default: today.",
        ),
    ] = None

    @property
    def check(self) -> Check:
        """How digests are checked.

        Raises:
            UsageError: two flags contradict each other.
        """
        if not self.no_verify:
            return self.verify or Check.CACHED
        if self.verify not in (None, Check.NEVER):
            raise UsageError("Give either --verify or --no-verify.")
        return Check.NEVER

    def adapters(self) -> list[AdapterFile]:
        """The adapters of the experts, with their scales.

        Raises:
            ModelError: a file is missing.
            UsageError: a scale has no meaning.
        """
        from capt_local.bundles.manifest import AdapterFile

        return [AdapterFile.parse(str(given)) for given in self.expert_adapter or ()]


@dataclass(frozen=True, slots=True)
class SpeedFlags:
    """How fast, for verbs that write one answer at a time."""

    speed: Annotated[
        Speed,
        option(
            "--speed",
            twin="SPEED",
            metavar="NAME",
            help="auto: drafts that all models check at once, where they pay; lookup, "
            "target-draft: always that draft; exact-steps: none. The answer is the "
            "same. Default: auto.",
        ),
    ] = Speed.AUTO

    def at(self, options: GenerateOptions) -> GenerateOptions:
        """The options with this speed."""
        return replace(options, speed=self.speed)
