"""The prompt before its answer: decoded in all models, and weighed where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from capt_local.decoding.evidence import Evidence
from capt_local.decoding.prompt_evidence import Memory, prefill_with_evidence
from capt_local.decoding.trio import Trio
from capt_local.prompting.messages import Prompt


def prefill(
    trio: Trio, prompts: Mapping[str, Prompt], memory: Memory | None = None
) -> Evidence | None:
    """Brings all models to the end of the prompt.

    Args:
        trio: started with the same prompts.
        prompts: by role.
        memory: what the positions of an earlier prompt showed.

    Returns:
        What the weights come from; None where they are fixed.

    Raises:
        Cancelled: the models were told to stop.
    """
    evidence = None
    if trio.mixes:
        evidence = prefill_with_evidence(trio, prompts, memory)
        trio.observe(evidence.weights)
    trio.settle()
    return evidence
