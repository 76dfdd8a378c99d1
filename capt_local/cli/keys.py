"""The keys of a file of settings: the names of all options that have a twin, in one place.

A test holds that the list is complete; reading it off the declarations of all verbs takes a second.
"""

from __future__ import annotations

KEYS = frozenset(
    [
        "alignment",
        "alpha",
        "audit",
        "base",
        "bundle",
        "ctx-size",
        "date",
        "delimiter",
        "expert",
        "expert-adapter",
        "expert-in-thoughts",
        "gpu-layers",
        "id-field",
        "idle-timeout",
        "input-format",
        "json",
        "logprobs",
        "max-tokens",
        "method",
        "min-p",
        "mirror",
        "no-healing",
        "no-long-tokens",
        "no-repetition-stop",
        "no-verify",
        "offline",
        "parallel",
        "plausibility",
        "raw",
        "record-timeout",
        "repeat-last-n",
        "repeat-penalty",
        "seed",
        "speed",
        "system",
        "target",
        "temp",
        "thoughts",
        "threads",
        "top-k",
        "top-logprobs",
        "top-p",
        "verbose",
        "verify",
        "weights",
    ]
)
