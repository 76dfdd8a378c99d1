"""Which models a verb runs, and how they are loaded.

An option that may be given several times has its values in one environment variable, separated as
in PATH (":", or ";" on Windows).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from capt_local.bundle.check import Check
from capt_local.cli.options import option
from capt_local.errors import UsageError

if TYPE_CHECKING:
    from capt_local.bundle.adapter import AdapterFile


def verify_option() -> Any:
    """How the digests of models are checked; the default stands in the help of each verb."""
    return option(
        "--verify",
        twin="VERIFY",
        metavar="always|cached|never",
        help="Check the digests of the models: always reads the files; cached (default) reads a "
        "file of an installed bundle once and then only if it has changed.",
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
        help="CPU threads. Default: the cores that this process may use.",
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
        from capt_local.bundle.adapter import AdapterFile

        return [AdapterFile.parse(str(given)) for given in self.expert_adapter or ()]
