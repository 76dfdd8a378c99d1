"""The options that verbs share, each declared once, in groups of one concern.

A verb is a function of one frozen dataclass that inherits from such groups (see `parse`). A default
of None means: what the bundle says, else the default of the decoder. Each `setting` has an
environment twin CAPT_LOCAL_* and a key in the files of user and site. The prompt and the files of
one call are a `flag`, without a twin: the environment is inherited by everything that is started
later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from capt_local.bundles.verify import Check
from capt_local.cli.files import checked, read_text
from capt_local.config import Feature, read_site
from capt_local.decoding.options import GenerateOptions, Method, Speed, Structure
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.report.terminal import Screen

_LARGEST = 1 << 20  # bytes of a schema or a system text


def flag(
    usage: str,
    help: str,
    default: Any = None,
    *,
    twin: str | None = None,
    feature: Feature | None = None,
    **more: Any,
) -> Any:
    """A field that is an option of one call, with `usage` such as `-o --output PATH`.

    `twin` is its environment variable, `feature` what the site may forbid; `more` is for Typer.
    """
    *names, last = usage.split()
    if last.startswith("-"):
        names.append(last)
    made = typer.Option(
        *names,
        help=help,
        envvar=twin,
        metavar=None if last in names else last,
        show_default=False,
        show_envvar=False,
        **more,
    )
    about = {"declared": made, "names": names, "feature": feature}
    return dataclasses.field(default=default, metadata=about)


def setting(usage: str, help: str, default: Any = None, **more: Any) -> Any:
    """Like `flag`, with an environment variable and a settings key named after its long flag."""
    long = max((word for word in usage.split() if word.startswith("-")), key=len)
    twin = "CAPT_LOCAL_" + long.lstrip("-").upper().replace("-", "_")
    return flag(usage, help, default, twin=twin, **more)


def argument(metavar: str, help: str, default: Any = None) -> Any:
    """A field of a group that is a positional argument; one without a default is required."""
    made = typer.Argument(metavar=metavar, help=help, show_default=False)
    return dataclasses.field(default=default, metadata={"declared": made, "names": []})


def verify_option() -> Any:
    """How the digests of models are checked."""
    return setting(
        "--verify always|cached|never",
        "Check the digests of the models: always reads the files; cached reads a file of an "
        "installed bundle once and then only if it has changed. Default: cached.",
        Check.CACHED,
    )


def top_logprobs_option(needs: str) -> Any:
    """How many candidates are written for each token; `needs` is the option that it goes with."""
    help = f"Candidates of each model for each token, with {needs}."
    return setting("--top-logprobs N", help, 0, min=0, max=100)


@dataclass(frozen=True, kw_only=True)
class TemplateFlags:
    """Which chat template the target reads."""

    template: str | None = flag(
        "--template NAME|FILE",
        "A chat template for the target, and for models without one: plain, chatml, or a file "
        "(Jinja). Default: the bundle's, else the model's own.",
    )

    def template_source(self) -> str | None:
        """The source of the template; None: the bundle's or the model's own.

        Raises:
            UsageError: it cannot be read, or the site allows signed bundles only and it is a file:
                a template changes what the models read.
        """
        if self.template is None:
            return None
        from capt_local.prompting.template import NAMED_TEMPLATES, given_template

        if self.template not in NAMED_TEMPLATES:
            read_site().limits.refuse(Feature.UNSIGNED, "A template file, which nobody has signed,")
        return given_template(self.template)


# How tokens are chosen.


@dataclass(frozen=True, kw_only=True)
class CombineFlags:
    """How the models are combined."""

    alpha: str | None = setting(
        "--alpha NUMBER[,...]|evidence",
        "Weight of the contrast, one for all pairs or one for each; 'evidence' weighs the models "
        "by how well they explain the prompt. Default: the bundle's, else evidence.",
    )
    weights: str | None = setting(
        "--weights A,B,C", "Fixed weights of target, expert and base instead: T^A * E^B / B^C."
    )
    plausibility: float | None = setting(
        "--plausibility P",
        "Never choose a token below this share of the target's best. Default: 1e-5.",
    )


@dataclass(frozen=True, kw_only=True)
class MethodFlags(CombineFlags):
    """The same, for verbs that run one method."""

    method: Method | None = setting(
        "--method NAME",
        "capt: all together; expert-led: the same over the expert's tokens; duo: target and expert "
        "without a base; target, expert, base: one alone; capt-paper, capt-paper-raw, unite, "
        "unite-20, safe, proxy-tuning, contrastive: published methods. Default: the bundle's, else "
        "capt.",
    )


@dataclass(frozen=True, kw_only=True)
class SampleFlags(CombineFlags):
    """The same, how tokens are drawn, and when the answer ends."""

    max_tokens: int | None = setting(
        "-n --max-tokens N", "Maximum tokens of the answer. Default: the bundle's, else 512."
    )
    temp: float | None = setting("--temp T", "Temperature; 0: greedy decoding. Default: 0.")
    top_k: int = setting("--top-k K", "Keep the K likeliest tokens; 0: all.", 0)
    top_p: float = setting("--top-p P", "Keep the likeliest tokens up to this probability.", 1.0)
    min_p: float = setting("--min-p P", "Keep tokens above this share of the best.", 0.0)
    repeat_penalty: float = setting(
        "--repeat-penalty X", "Above 1: recent tokens become less likely. Default: 1.", 1.0
    )
    no_repetition_stop: bool = setting(
        "--no-repetition-stop", "Do not stop an answer that repeats itself without end.", False
    )
    repeat_last_n: int = setting(
        "--repeat-last-n N", "Tokens that the repetition penalty looks back. Default: 64.", 64
    )
    seed: int = setting("-s --seed N", "Random seed. Default: 0.", 0)
    stop: list[str] | None = flag("--stop TEXT", "Ends the answer; may be given several times.")


@dataclass(frozen=True, kw_only=True)
class StructureFlags:
    """Which form the answer must have."""

    json_schema: Path | None = flag(
        "--json-schema PATH", "A JSON schema: the answer is an instance of it (docs/answers.md)."
    )

    def structure(self) -> Structure | None:
        """The form that the flag names. Raises UsageError: it cannot be used; quotes nothing."""
        if self.json_schema is None:
            return None
        name = "The schema (--json-schema)"
        from capt_local.decoding.structured import schema_structure

        return schema_structure(read_text(self.json_schema, name, _LARGEST).encode(), name)


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Whether an answer with facts that the note lacks is refused."""

    require_sources: bool = setting(
        "--require-sources",
        "Refuse to answer if a fact of the answer is not in the note (docs/documents.md).",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class AskFlags(MethodFlags, SampleFlags, StructureFlags):
    """How something is asked and answered, for verbs that do just that."""

    system: str | None = setting("--system TEXT", "The system text.")
    system_file: Path | None = flag(
        "--system-file PATH", "A UTF-8 file that holds the system text."
    )
    encoding: str | None = setting(
        "--encoding NAME",
        "The encoding of text files: utf-8, utf-16, windows-1252, ... Default: that of a byte "
        "order mark, else utf-8.",
    )
    expert_in_thoughts: Literal["on", "off"] = setting(
        "--expert-in-thoughts on|off",
        "Whether expert and base read the reasoning and take part in it. Default: off.",
        "off",
    )

    def system_text(self) -> str | None:
        """The system text. Raises UsageError: given twice, empty or no UTF-8."""
        if self.system_file is None:
            return None if self.system is None else checked(self.system, "--system")
        if self.system is not None:
            raise UsageError("Give either --system or --system-file.")
        name = "The system text (--system-file)"
        # Editors put a line end behind the last line, which is not part of the text.
        text = read_text(self.system_file, name, _LARGEST).removesuffix("\n").removesuffix("\r")
        if not text.strip():
            raise UsageError(f"{name} is empty.")
        return text


@dataclass(frozen=True, kw_only=True)
class AnswerFlags(AskFlags, TemplateFlags):
    """The same, for verbs that write one answer at a time and show it as it is made."""

    thoughts: Literal["show", "dim", "hide"] | None = setting(
        "--thoughts show|dim|hide",
        "How the model's reasoning is shown, on standard error. Default: dim on a terminal, else "
        "hide.",
    )
    speed: Speed = setting(
        "--speed NAME",
        "auto: speculative drafts where they pay; exact-steps: none, with the same answer. fast: "
        "the target alone where expert and base hardly matter, with a different answer. "
        "Default: auto.",
        Speed.AUTO,
    )

    def thought_writer(self, screen: Screen) -> Callable[[bytes], None] | None:
        """What writes reasoning on standard error; None where it is hidden."""
        display = self.thoughts or ("dim" if screen.err_on_terminal else "hide")
        return None if display == "hide" else partial(screen.thought, dim=display == "dim")


@dataclass(frozen=True, kw_only=True)
class BestOfFlags:
    """Several answers to one prompt, of which the best is shown."""

    best_of: int = setting(
        "--best-of N",
        "Draw N answers at once and show the best: by the scorer, of answers of a form by the "
        "majority, else by likelihood. Needs --temp. Default: 1.",
        1,
    )
    scorer: str | None = setting(
        "--scorer scorer|PATH",
        "What ranks them: 'scorer', that of the bundle, or the folder of one.",
    )

    def check_best_of(self, options: GenerateOptions) -> None:
        """Raises UsageError: so many cannot be drawn, or a scorer has nothing to rank."""
        if self.best_of != 1:
            from capt_local.rerank import check_best_of

            check_best_of(self.best_of, options)
        elif self.scorer is not None:
            raise UsageError("--scorer ranks several answers: give --best-of N.")


# What is written.


@dataclass(frozen=True, kw_only=True)
class HtmlFlags:
    """Whether a report is written, and whether files of others may be replaced."""

    html: Path | None = flag(
        "--html PATH",
        "Write what the expert changed as one HTML page here (mode 0600).",
        feature=Feature.REPORTS,
    )
    force: bool = flag(
        "--force", "Let -o and --html replace a file that capt-local did not write.", False
    )


@dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """How findings are written."""

    json: bool = setting("--json", "Write a JSON object.", False)


@dataclass(frozen=True, kw_only=True)
class ViewFlags:
    """How much is written on standard error."""

    verbose: int = setting("-v --verbose", "Write more on standard error.", 0, count=True)


# The models.


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which models, and how they are loaded."""

    bundle: str | None = setting(
        "-m --bundle NAME|PATH", "A bundle: its id, its folder or its bundle.toml. Default: demo."
    )
    target: Path | None = setting("--target GGUF", "The target model, instead of a bundle.")
    expert: list[Path] | None = setting(
        "--expert GGUF", "The clinical expert, likewise; once for each of several pairs."
    )
    base: list[Path] | None = setting(
        "--base GGUF", "What the expert was trained from, likewise; in the order of the experts."
    )
    expert_adapter: list[Path] | None = setting(
        "--expert-adapter GGUF[=SCALE]",
        "A LoRA adapter for each expert; without --expert, of the base.",
    )
    adapter: list[str] | None = setting(
        "--adapter ROLE:GGUF[=SCALE]",
        "One more LoRA adapter on the model of a role; may be given several times.",
    )
    verify: Check = verify_option()
    ctx_size: int | None = setting(
        "-c --ctx-size N", "Tokens that the context holds. Default: the bundle's.", min=1
    )
    gpu_layers: list[str] | None = setting(
        "-ngl --gpu-layers [ROLE:]N|auto|all",
        "Layers on GPUs, of all models or of one; may be given several times. Default: auto, as "
        "many as fit, the target's first.",
    )
    device: list[str] | None = setting(
        "--device [ROLE:]NAME[,...]",
        "GPUs that the models, or one of them, may use, as doctor names them, or CPU; may be given "
        "several times. Default: all GPUs.",
    )
    tensor_split: list[str] | None = setting(
        "--tensor-split [ROLE:]A,B,...",
        "Proportions of the layers on these GPUs. Default: on as few GPUs as hold them.",
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] = setting(
        "--kv-type f16|q8_0|q4_0", "Number format of the KV cache. Default: f16.", "f16"
    )
    threads: int | None = setting(
        "-t --threads N",
        "CPU threads. Default: the cores that other programs leave free while it runs.",
        min=1,
    )
    date: str | None = setting(
        "--date YYYY-MM-DD", "The date that chat templates may use. Default: today."
    )
