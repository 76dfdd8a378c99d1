"""The object that an answer becomes in the worker."""

from __future__ import annotations

from collections.abc import Sequence

from capt_local.decoding.generation import Generation
from capt_local.decoding.step import Step
from capt_local.report.json import JsonObject, answer_object, answer_of

_ALL = 100  # candidates of a token: as many as the step has


def answer_object_of(model: str, generation: Generation, steps: Sequence[Step]) -> JsonObject:
    """An answer as `report.json` has it, without an id and a provenance.

    Args:
        model: id of the bundle.
        generation: that has ended.
        steps: all of it.
    """
    return answer_object(answer_of(generation, steps, model), top_logprobs=_ALL)
