"""The verbs of the program, and where their functions are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

# The module of this package that holds a verb's function, and its line in the help. A verb without
# a module stands in front of others, as in `models list`.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "A fictitious visit, with the three demo models"),
    "chat": ("chat", "A conversation, with /why for what the expert changed"),
    "generate": ("generate", "One answer to a prompt (-p, -f or stdin)"),
    "explain": ("explain", "What the expert changed in an answer, and why"),
    "serve": ("serve", "A page for clinicians, and OpenAI's interface, on this machine"),
    "batch": ("batch", "An answer to each record of a file, resumable"),
    "score": ("score", "How well texts are predicted: bits per byte"),
    "eval": ("eval", "Tasks under several methods, with 95 % intervals"),
    "bench": ("bench", "How fast answers come, target alone and together"),
    "models": ("", "The bundles: list, show, verify, export, import"),
    "models list": ("models.manage", "The bundles that are here"),
    "models show": ("models.manage", "What a bundle is, and how its models fit together"),
    "models verify": ("models.manage", "Whether the files are those that the bundle names"),
    "models create": ("models.create", "Makes a bundle of models, after a look into them"),
    "models remove": ("models.manage", "Deletes a bundle from the user's own store"),
    "models clean": ("models.manage", "Deletes what imports that were stopped have left"),
    "models pull": ("models.pull", "Fetches a bundle from a hub, the one verb with a network"),
    "models export": ("models.travel", "Writes a bundle for another machine, signed"),
    "models import": ("models.travel", "Installs a bundle that came from elsewhere"),
    "models keygen": ("models.travel", "Makes a pair of keys to sign bundles with"),
    "models trust": ("models.travel", "Installs the public key of a source of bundles"),
    "config": ("", "The settings of site and user: show"),
    "config show": ("config", "Every setting, and where its value comes from"),
    "doctor": ("doctor", "What runs here: versions, backend, memory, bundle"),
}


def function(name: str) -> Callable[..., int]:
    """The function of a verb, `models_list` for `models list`; imports its module."""
    module = import_module(f"capt_local.cli.{VERBS[name][0]}")
    found: Callable[..., int] = getattr(module, name.replace(" ", "_"))
    return found


def below(name: str = "") -> dict[str, str]:
    """The verbs behind a name and their lines in the help; those of the program behind none."""
    front = f"{name} " if name else ""
    rest = {each.removeprefix(front): VERBS[each][1] for each in VERBS if each.startswith(front)}
    return {each: line for each, line in rest.items() if " " not in each}
