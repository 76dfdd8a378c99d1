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
        module: of this room, that holds it.
        summary: its line in the help.
        verbs: those that stand behind its name, as in `models list`; their functions bear both
            names, as `models_list`.
    """

    name: str
    module: str
    summary: str
    verbs: tuple[Verb, ...] = ()


_MODELS = (
    Verb("list", "models.verb", "The bundles that are here"),
    Verb("show", "models.show", "What a bundle is, and how its models fit together"),
    Verb("verify", "models.verb", "Whether the files are those that the bundle names"),
    Verb("create", "models.create", "Makes a bundle of models, after trying them out"),
    Verb("remove", "models.verb", "Deletes a bundle from the user's own store"),
    Verb("clean", "models.clean", "Deletes what imports that were stopped have left"),
    Verb("pull", "models.pull", "Fetches a bundle from a hub, the one verb with a network"),
    Verb("export", "models.travel", "Writes a bundle for another machine, signed"),
    Verb("import", "models.travel", "Takes in a bundle that came from elsewhere"),
    Verb("keygen", "models.keys", "Makes a pair of keys to sign bundles with"),
    Verb("trust", "models.keys", "Installs the public key of a source of bundles"),
)
_CONFIG = (Verb("show", "config", "Every setting, and where its value comes from"),)
VERBS = (
    Verb("demo", "demo", "A fictitious visit, with the three demo models"),
    Verb("chat", "chat.verb", "A conversation, with /why for what the expert changed"),
    Verb("generate", "generate", "One answer to a prompt (-p, -f or stdin)"),
    Verb("explain", "explain", "What the expert changed in an answer, and why"),
    Verb("batch", "batch.verb", "An answer to each record of a file, resumable"),
    Verb("score", "eval.score", "How well texts are predicted: bits per byte"),
    Verb("eval", "eval.verb", "Tasks under several methods, with 95 % intervals"),
    Verb("bench", "bench.verb", "How fast answers come, target alone and together"),
    Verb(
        "models",
        "models.verb",
        "The bundles: list, show, verify, export, import",
        _MODELS,
    ),
    Verb("config", "config", "What site and user have settled: show", _CONFIG),
    Verb("doctor", "doctor.verb", "What runs here: versions, backend, memory, bundle"),
)


def function(verb: Verb, *above: str) -> Callable[..., int]:
    """The function of a verb; imports its module.

    Args:
        verb: one without others behind it.
        above: the names in front of its own.
    """
    found: Callable[..., int] = getattr(
        import_module(f"capt_local.cli.{verb.module}"), "_".join((*above, verb.name))
    )
    return found
