"""The verbs: their names, where they live, a line about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: the function of its module does it, or one of several below it.

    Attributes:
        name: as typed, and of the function.
        module: that holds it.
        summary: its line in the help.
        verbs: those that stand behind its name, as in `models list`; their functions bear both
            names, as `models_list`.
    """

    name: str
    module: str
    summary: str
    verbs: tuple[Verb, ...] = ()


_MODELS = (
    Verb("list", "capt_local.cli.models", "The bundles that are here"),
    Verb("show", "capt_local.cli.models_show", "What a bundle is, and how its models fit together"),
    Verb("verify", "capt_local.cli.models", "Whether the files are those that the bundle names"),
    Verb("remove", "capt_local.cli.models", "Deletes a bundle from the user's own store"),
    Verb("export", "capt_local.cli.models_travel", "Writes a bundle for another machine, signed"),
    Verb("import", "capt_local.cli.models_travel", "Takes in a bundle that came from elsewhere"),
    Verb("keygen", "capt_local.cli.models_keys", "Makes a pair of keys to sign bundles with"),
    Verb("trust", "capt_local.cli.models_keys", "Installs the public key of a source of bundles"),
)
_CONFIG = (Verb("show", "capt_local.cli.config", "Every setting, and where its value comes from"),)
VERBS = (
    Verb("demo", "capt_local.cli.demo", "A fictitious visit, with the three demo models"),
    Verb("chat", "capt_local.cli.chat", "A conversation, with /why for what the expert changed"),
    Verb("generate", "capt_local.cli.generate", "One answer to a prompt (-p, -f or stdin)"),
    Verb("explain", "capt_local.cli.explain", "What the expert changed in an answer, and why"),
    Verb("batch", "capt_local.cli.batch", "An answer to each record of a file, resumable"),
    Verb("replay", "capt_local.cli.replay", "One record of a batch again: is the answer the same"),
    Verb("merge", "capt_local.cli.merge", "The outputs of all shards of a batch run as one"),
    Verb("audit", "capt_local.cli.audit", "The log of batch runs: is it whole, what is in it"),
    Verb("score", "capt_local.cli.score", "How well texts are predicted: bits per byte"),
    Verb("eval", "capt_local.cli.eval", "Tasks under several methods, with 95 % intervals"),
    Verb("bench", "capt_local.cli.bench", "How fast answers come, target alone and together"),
    Verb(
        "models",
        "capt_local.cli.models",
        "The bundles: list, show, verify, export, import",
        _MODELS,
    ),
    Verb("config", "capt_local.cli.config", "What site and user have settled: show", _CONFIG),
    Verb("doctor", "capt_local.cli.doctor", "What runs here: versions, backend, memory, bundle"),
)


def function(verb: Verb, *above: str) -> Callable[..., int]:
    """The function of a verb; imports its module.

    Args:
        verb: one without others behind it.
        above: the names in front of its own.
    """
    found: Callable[..., int] = getattr(import_module(verb.module), "_".join((*above, verb.name)))
    return found
