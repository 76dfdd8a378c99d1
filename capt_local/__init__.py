"""Private clinical language-model inference by Cross-Architecture Proxy Tuning.

from capt_local import GenerateOptions, Runtime

with Runtime.open("demo") as runtime:
    answer = runtime.generate("What are the symptoms of asthma?", GenerateOptions())
    for step in answer:
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capt_local.decoding.batching import Request, RequestResult
    from capt_local.decoding.options import (
        CombineOptions,
        FinishReason,
        GenerateOptions,
        Method,
        SampleOptions,
        Step,
    )
    from capt_local.errors import CaptError
    from capt_local.llama.options import LoadOptions
    from capt_local.prompting.messages import Message
    from capt_local.runtime import Runtime
    from capt_local.version import __version__


_PLACES = {
    "RequestResult": "capt_local.decoding.batching",
    "Request": "capt_local.decoding.batching",
    "CaptError": "capt_local.errors",
    "CombineOptions": "capt_local.decoding.options",
    "FinishReason": "capt_local.decoding.options",
    "GenerateOptions": "capt_local.decoding.options",
    "LoadOptions": "capt_local.llama.options",
    "Message": "capt_local.prompting.messages",
    "Method": "capt_local.decoding.options",
    "Runtime": "capt_local.runtime",
    "SampleOptions": "capt_local.decoding.options",
    "Step": "capt_local.decoding.options",
    "__version__": "capt_local.version",
}
__all__ = [
    "CaptError",
    "CombineOptions",
    "FinishReason",
    "GenerateOptions",
    "LoadOptions",
    "Message",
    "Method",
    "Request",
    "RequestResult",
    "Runtime",
    "SampleOptions",
    "Step",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that `--help` need not load the engine."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
