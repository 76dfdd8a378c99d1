"""What an answer is drafted with: the sources that were asked for and the models that are there."""

from __future__ import annotations

from capt_local.decoding.options import GenerateOptions, Speed
from capt_local.decoding.proxy import Proxy
from capt_local.decoding.speculate.costs import Costs
from capt_local.decoding.speculate.draft import DraftSource
from capt_local.decoding.speculate.leading import TargetDraft
from capt_local.decoding.speculate.lookup import Lookup
from capt_local.decoding.speculate.policy import Policy
from capt_local.decoding.speculate.reading_along import ExpertDraft
from capt_local.decoding.speculate.speculation import Speculation
from capt_local.decoding.speculate.tally import Tally
from capt_local.decoding.stopwatch import rounded
from capt_local.decoding.trio import Trio

_FINE = 2.0**0.5  # to which the speeds of models are rounded


def speculation(trio: Trio, options: GenerateOptions, tally: Tally) -> Speculation | None:
    """What drafts for an answer; None where nothing does.

    Where the models at hand cannot do what was asked for, the tally says so.
    """
    if options.speed is Speed.EXACT_STEPS:
        return None
    if not trio.can_look_ahead:
        if options.speed is not Speed.AUTO or trio.proxies:
            tally.notices.append(
                "The answer is written step by step, without drafts: a model cannot take tokens "
                "back, or the alignment cannot look ahead."
            )
        return None
    wanted = [each for each in sources(trio) if options.speed in (Speed.AUTO, each.name)]
    if not wanted:
        if options.speed is not Speed.AUTO:
            tally.notices.append(
                f"The answer is written step by step: {options.speed} needs a model that this "
                "method does not use."
            )
        return None
    asked = options.speed is not Speed.AUTO
    return Speculation(trio, wanted, Policy(costs(trio), wanted, always=asked), tally)


def costs(trio: Trio) -> Costs:
    """What decoding costs with these models, as far as is known."""
    own = trio.cached.model
    sizes = {each.role: each.model.size for each in trio.models}
    known = Costs.of(sizes, trio.cached.role, own.price)
    watch = trio.cached.watch
    if watch.more is not None:
        known.more = watch.more
    # A small model of many layers takes longer than its size says.
    measured = {
        each.cached.role: rounded(each.cached.watch.one / watch.one, _FINE)
        for each in trio.proxies
        if watch.one is not None and each.cached.watch.one is not None
    }
    # Expert and base are alike, and the base may never run by itself.
    for role in known.proxies:
        pair = role.replace("base", "expert")
        if pair in measured:
            known.proxies[role] = measured[pair]
    return known


def sources(trio: Trio) -> list[DraftSource]:
    """All that these models allow."""
    found: list[DraftSource] = [Lookup()]
    if not trio.proxies:
        return found
    found.append(TargetDraft())
    expert = next((each for each in trio.proxies if each.cached.role == "expert"), None)
    if isinstance(expert, Proxy) and trio.tokenizer is not None:
        found.append(ExpertDraft(expert, trio.tokenizer))
    return found
