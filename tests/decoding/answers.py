"""Answers of toy models, step by step and at every other speed, and what must be the same."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from unittest import mock

import numpy as np

from capt_local.decoding import drafting
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GenerateOptions, Speed, Step
from capt_local.errors import CaptError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import Vocabulary
from tests.decoding.trios import assembly, turn
from tests.fakes import FakeModel, make_vocabulary

LETTERS = "abc "


def lettered(words: Sequence[str]) -> Vocabulary:
    """A small vocabulary in which texts divide in many ways."""
    return make_vocabulary([*LETTERS, *dict.fromkeys(words)], all_bytes=False)


class Habit(FakeModel):
    """Knows the last tokens alone, so that it repeats itself; sometimes it is quite sure.

    Rows that it has given out are overwritten by its next call, as those of a real model are.

    Args:
        vocabulary: of the model.
        seed: as for any fake.
        memory: tokens that count.
        sure: the share of places at which one token alone is likely.
        kinds: as for any fake.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        seed: int,
        *,
        memory: int = 2,
        sure: float = 0.3,
        **kinds: object,
    ) -> None:
        super().__init__(vocabulary, seed, **kinds)  # type: ignore[arg-type]
        self._memory, self._sure = memory, sure
        self._rows: dict[tuple[int, ...], np.ndarray] = {}
        self._given = np.empty((0, len(vocabulary)), np.float32)

    def extend(self, tokens: Sequence[int], rows: int = 1) -> np.ndarray:
        self._given[:] = np.random.default_rng(0).standard_normal(self._given.shape[1]) * 9
        self._given = super().extend(tokens, rows)
        return self._given

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        tail = tuple(tokens[-self._memory :])
        if tail not in self._rows:
            row = super().logits(tail)
            state = zlib.crc32(np.asarray(tail, np.int64).tobytes(), 77)
            if state % 1000 < 1000 * self._sure:
                texts = np.flatnonzero(self.vocabulary.is_text)
                row[texts[state % len(texts)]] += 40
            self._rows[tail] = row
        return self._rows[tail]


@dataclass
class Told:
    """One answer and what became of the models."""

    generation: Generation
    steps: list[Step]
    trio: Ensemble
    error: BaseException | None = None


Models = Callable[[], Mapping[str, FakeModel]]


def tell(
    models: Mapping[str, FakeModel],
    options: GenerateOptions,
    text: bytes = b"abc ab",
    *,
    leading_space: bytes = b"",
    edit: Callable[[dict[str, Prompt]], dict[str, Prompt]] = lambda prompts: prompts,
    cancel: Callable[[], bool] | None = None,
    trio: Ensemble | None = None,
) -> Told:
    """One answer; an error is kept, not raised."""
    trio = trio or assembly(models).build(options)
    prompts = turn(trio, text)
    if leading_space:
        role = trio.leader.role
        prompts[role] = dataclasses.replace(prompts[role], leading_space=leading_space)
    generation = Generation(trio, edit(prompts), options, cancel)
    told = Told(generation, [], trio)
    try:
        told.steps.extend(generation)
    except (CaptError, KeyboardInterrupt) as error:
        told.error = error
    nothing_is_left_of_drafts(trio)
    return told


def nothing_is_left_of_drafts(trio: Ensemble) -> None:
    """Every model stands at the text that was said, or before it; never behind it."""
    assert trio.leader.tokens == trio.tokens[: len(trio.leader.tokens)]
    for proxy in trio.proxies:
        assert proxy.cache.tokens == proxy.tokens[: len(proxy.cache.tokens)]
    for cached in trio.models:
        assert getattr(cached.model, "tokens", cached.tokens) == cached.tokens
        assert cached.model.position == len(cached.tokens)


def same(got: Told, wanted: Told) -> None:
    """The same answer, with the same figures at every step."""
    assert [step.token for step in got.steps] == [step.token for step in wanted.steps]
    for one, other in zip(got.steps, wanted.steps, strict=True):
        # To the last bit, also where expert and base were not asked.
        told = other.contrast if one.contrast is None else one.contrast
        assert (one.contrast is None) == one.proxies_skipped
        assert (
            dataclasses.replace(one, contrast=told, proxies_skipped=other.proxies_skipped) == other
        )
    for name in ("text", "thoughts", "finish", "weights", "structured", "changed", "steps_done"):
        assert getattr(got.generation, name) == getattr(wanted.generation, name), name
    assert type(got.error) is type(wanted.error)
    assert got.generation.notices == wanted.generation.notices


def eager() -> AbstractContextManager[object]:
    """Drafts of the leader itself wherever there can be one, whatever they promise."""
    return mock.patch.object(drafting, "_saved", lambda *_: 1e9)


def at_every_speed(
    models: Models, options: GenerateOptions, text: bytes = b"abc ab", **how: object
) -> dict[str, Told]:
    """The answer at each speed, after checking that it is the one step by step."""
    stepwise = dataclasses.replace(options, speed=Speed.EXACT_STEPS)
    plain = tell(models(), stepwise, text, **how)  # type: ignore[arg-type]
    assert not plain.generation.stats.drafted and not plain.generation.stats.proxies_skipped
    found = {"exact": plain}
    for name, drafts in (("auto", nullcontext()), ("eager", eager())):
        with drafts:
            told = found[name] = tell(models(), options, text, **how)  # type: ignore[arg-type]
        same(told, plain)
        adds_up(told)
    return found


def adds_up(told: Told) -> None:
    """The figures of drafts and gate agree with the steps."""
    draft_stats = told.generation.stats
    assert draft_stats.steps == len(told.steps)
    assert draft_stats.proxies_skipped == sum(step.proxies_skipped for step in told.steps)
    assert 0 <= draft_stats.accepted <= draft_stats.drafted
    assert draft_stats.accepted <= draft_stats.steps
    for count in draft_stats.by_source.values():
        assert 0 < count.rounds <= count.drafted and 0 <= count.accepted <= count.drafted
