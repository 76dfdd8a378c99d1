"""Toy trios for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from capt_local.alignment import TargetEvents, fit
from capt_local.decoding.ensemble import Ensemble, EnsembleBuilder
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, GenerateOptions
from capt_local.decoding.proxy import LogitsCache, Proxy
from capt_local.prompting.messages import Prompt, Segment
from capt_local.tokenization import TextTokenizer
from tests.fakes import FakeModel, make_vocabulary, text_tokenizer

TARGET = make_vocabulary(["card", "iac", " the", " a", "cardiac", "\n\n", "ab", "abc"])
PROXY = make_vocabulary(["car", "diac", " th", "bc", "abcab", "ia", "card", "abc", " the "])


def make_trio(
    target: FakeModel, expert: FakeModel, base: FakeModel, options: CombineOptions | None = None
) -> Ensemble:
    events = TargetEvents(text_tokenizer(target))
    alignment = fit(expert.vocabulary, events)
    proxies = [
        Proxy(LogitsCache(role, model), text_tokenizer(model), alignment)
        for role, model in (("expert", expert), ("base", base))
    ]
    return Ensemble(LogitsCache("target", target), proxies, options)


def toy(options: CombineOptions | None = None, **kinds: object) -> Ensemble:
    models = [
        FakeModel(vocabulary, seed, **kinds)  # type: ignore[arg-type]
        for vocabulary, seed in ((TARGET, 1), (PROXY, 2), (PROXY, 3))
    ]
    return make_trio(*models, options)


def tokenizers(trio: Ensemble) -> dict[str, TextTokenizer]:
    """Of its models, by role."""
    return {each.role: text_tokenizer(each.model) for each in trio.models}  # type: ignore[arg-type]


def assembly(models: Mapping[str, FakeModel]) -> EnsembleBuilder:
    """The models by role, as the runtime puts them together."""
    return EnsembleBuilder(
        {role: LogitsCache(role, model) for role, model in models.items()},
        {role: text_tokenizer(model) for role, model in models.items()},
        lambda role: f"There is no {role} here.",
    )


def turn(
    trio: Ensemble, text: bytes = b"abc the card", *, continues_text: bool = False, bos: bool = True
) -> dict[str, Prompt]:
    """BOS if wanted, and a text of the user, for every model."""
    prompts = {}
    for cached in (trio.leader, *(proxy.cache for proxy in trio.proxies)):
        tokens = text_tokenizer(cached.model).encode(text, start=True)  # type: ignore[arg-type]
        user = Segment(tuple(tokens), text, evidence=True)
        segments = (Segment((0,)), user) if bos else (user,)
        prompts[cached.role] = Prompt(segments, continues_text=continues_text)
    trio.prompts = prompts  # type: ignore[attr-defined]
    return prompts


def walk(
    trio: Ensemble,
    options: GenerateOptions,
    cancel: Callable[[], bool] | None = None,
    constraint: Any = None,
) -> Generation:
    """An answer to the prompt that `turn` made last."""
    prompts = getattr(trio, "prompts", None) or turn(trio)
    options = replace(options, combine=trio.options)
    made = Generation(trio, prompts, options, cancel)
    if constraint is not None:
        made._constraint = constraint
    return made
