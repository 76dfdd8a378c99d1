"""Toy trios for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping

from capt_local.alignment.fit import fit
from capt_local.alignment.projection import TargetEvents
from capt_local.decoding.assembly import Assembly
from capt_local.decoding.cached import CachedModel
from capt_local.decoding.options import CombineOptions
from capt_local.decoding.proxy import Proxy
from capt_local.decoding.trio import Trio
from capt_local.prompting.messages import Prompt, Segment
from tests.fakes import FakeModel, make_vocabulary, text_tokenizer

TARGET = make_vocabulary(["card", "iac", " the", " a", "cardiac", "\n\n", "ab", "abc"])
PROXY = make_vocabulary(["car", "diac", " th", "bc", "abcab", "ia", "card", "abc", " the "])


def make_trio(
    target: FakeModel, expert: FakeModel, base: FakeModel, options: CombineOptions | None = None
) -> Trio:
    events = TargetEvents(text_tokenizer(target))
    alignment = fit(text_tokenizer(expert), events)
    proxies = [
        Proxy(CachedModel(role, model), text_tokenizer(model), alignment)
        for role, model in (("expert", expert), ("base", base))
    ]
    return Trio(CachedModel("target", target), proxies, options)


def toy(options: CombineOptions | None = None, **kinds: object) -> Trio:
    models = [
        FakeModel(vocabulary, seed, **kinds)  # type: ignore[arg-type]
        for vocabulary, seed in ((TARGET, 1), (PROXY, 2), (PROXY, 3))
    ]
    return make_trio(*models, options)


def assembly(models: Mapping[str, FakeModel]) -> Assembly:
    """The models by role, as the runtime puts them together."""
    return Assembly(
        {role: CachedModel(role, model) for role, model in models.items()},
        {role: text_tokenizer(model) for role, model in models.items()},
        lambda role: f"There is no {role} here.",
    )


def turn(
    trio: Trio, text: bytes = b"abc the card", *, goes_on: bool = False, bos: bool = True
) -> dict[str, Prompt]:
    """BOS if wanted, and a text of the user, for every model."""
    prompts = {}
    for cached in (trio.cached, *(proxy.cached for proxy in trio.proxies)):
        tokens = text_tokenizer(cached.model).encode(text, start=True)  # type: ignore[arg-type]
        user = Segment(tuple(tokens), text, evidence=True)
        segments = (Segment((0,)), user) if bos else (user,)
        prompts[cached.role] = Prompt(segments, goes_on=goes_on)
    return prompts
