"""The verbs of the program, and where their functions are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: the function of its module does it, or one of several below it.

    Attributes:
        name: as typed, and of the function.
        module: of this package, that holds it.
        summary: its line in the help.
        verbs: those that stand behind its name, as in `models list`; their functions have both
            names, as `models_list`.
    """

    name: str
    module: str
    summary: str
    verbs: tuple[Verb, ...] = ()


_MODELS = (
    Verb("list", "models.manage", "The bundles that are here"),
    Verb("show", "models.manage", "What a bundle is, and how its models fit together"),
    Verb("verify", "models.manage", "Whether the files are those that the bundle names"),
    Verb("create", "models.create", "Makes a bundle of models, after a look into them"),
    Verb("remove", "models.manage", "Deletes a bundle from the user's own store"),
    Verb("clean", "models.manage", "Deletes what imports that were stopped have left"),
    Verb("pull", "models.pull", "Fetches a bundle from a hub, the one verb with a network"),
    Verb("export", "models.travel", "Writes a bundle for another machine, signed"),
    Verb("import", "models.travel", "Installs a bundle that came from elsewhere"),
    Verb("keygen", "models.travel", "Makes a pair of keys to sign bundles with"),
    Verb("trust", "models.travel", "Installs the public key of a source of bundles"),
)
VERBS = (
    Verb("demo", "demo", "A fictitious visit, with the three demo models"),
    Verb("chat", "chat", "A conversation, with /why for what the expert changed"),
    Verb("generate", "generate", "One answer to a prompt (-p, -f or stdin)"),
    Verb("explain", "explain", "What the expert changed in an answer, and why"),
    Verb("serve", "serve", "A page for clinicians, and OpenAI's interface, on this machine"),
    Verb("batch", "batch", "An answer to each record of a file, resumable"),
    Verb("score", "score", "How well texts are predicted: bits per byte"),
    Verb("eval", "eval", "Tasks under several methods, with 95 % intervals"),
    Verb("bench", "bench", "How fast answers come, target alone and together"),
    Verb("models", "", "The bundles: list, show, verify, export, import", _MODELS),
    Verb(
        "config",
        "",
        "The settings of site and user: show",
        (Verb("show", "config", "Every setting, and where its value comes from"),),
    ),
    Verb("doctor", "doctor", "What runs here: versions, backend, memory, bundle"),
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
