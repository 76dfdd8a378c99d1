"""Weights from evidence: the bounds of Bayesian model averaging, and where it comes from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.combine import mixture, plausible, products
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import FORGETTING, GRID, CombineOptions
from capt_local.decoding.prompt_weights import Evidence, Memory, prefill
from capt_local.prompting.messages import Prompt, Segment
from tests.decoding.trios import TARGET, toy, turn
from tests.fakes import text_tokenizer

SIGNED = np.array(GRID) * (1.0, 1.0, -1.0)
# Each turn of the user, and what was said in between.
TURNS = [b"abc the card", b" the cardiac a", b"ab abc the a", b"cardiac"]
TEXTS = st.text(alphabet="abcdiar the", min_size=1, max_size=24).map(str.encode)


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(0, 60))
def test_mixture_loses_at_most_log_m_to_the_best_member(seed: int, count: int, length: int) -> None:
    """Over any text, members and target (no forgetting)."""
    rng = np.random.default_rng(seed)
    powers, evidence = rng.normal(size=(count, 3)), Evidence(count, forgetting=1.0)
    mixed, single = 0.0, np.zeros(count)
    for _ in range(length):
        own = plausible(rng.normal(size=7).astype(np.float32) * 2, 1e-2)
        said = rng.normal(size=(2, len(own.tokens))) * rng.choice([0.1, 2.0, 30.0])
        members = products(own, said, powers)
        place = int(rng.integers(len(own.tokens)))
        mixed -= mixture(members, evidence.weights)[place]
        single -= members.logp[:, place]
        evidence.observe(members.logp[:, place])
    assert mixed <= single.min() + np.log(count) + 1e-6


@pytest.mark.parametrize("forgetting", [1.0, FORGETTING])
def test_weights_are_the_probabilities_that_each_gave_to_the_text(forgetting: float) -> None:
    """Each token by its age."""
    rows = -np.random.default_rng(0).exponential(size=(30, 4))
    evidence = Evidence(4, forgetting)
    for row in rows:
        evidence.observe(row)
    aged = (forgetting ** np.arange(29, -1, -1)[:, None] * rows).sum(axis=0)
    np.testing.assert_allclose(evidence.weights, np.exp(aged) / np.exp(aged).sum(), rtol=1e-9)
    assert evidence.seen == 30 and CombineOptions().forgetting == FORGETTING


# The evidence of a prompt: read in batches, remembered, and never from other text.


def conversation(trio: Ensemble, texts: list[bytes]) -> dict[str, Prompt]:
    """Texts that the user and the program wrote in turn, between control tokens."""
    prompts = {}
    for cached in trio.models:
        encode = text_tokenizer(cached.model).encode  # type: ignore[arg-type]
        segments = [Segment((0,))]
        for number, text in enumerate(texts):
            tokens = tuple(encode(text, start=True))
            segments += [Segment(tokens, text, evidence=number % 2 == 0), Segment((0,))]
        prompts[cached.role] = Prompt(tuple(segments))
    return prompts


def evidence_of(
    trio: Ensemble, prompts: dict[str, Prompt], memory: Memory | None = None
) -> Evidence:
    trio.start(prompts)
    found = prefill(trio, prompts, memory)
    assert found is not None
    np.testing.assert_array_equal(trio.weights, found.weights)
    for model in trio.models:
        whole = list(prompts[model.role].tokens)  # of raw text the last word may still change
        assert model.tokens == whole[: len(model.tokens)]
    return found


def same(first: Evidence, second: Evidence) -> None:
    assert first.seen == second.seen
    np.testing.assert_array_equal(first.weights, second.weights)


def walked(prompts: dict[str, Prompt], turns: list[int]) -> Evidence:
    """The same evidence from the walk, token by token, without any batch."""
    trio = toy(CombineOptions(grid=GRID))
    found = Evidence(len(trio.exponents))
    for place in turns:
        begin = {r: dataclasses.replace(p, segments=p.segments[:place]) for r, p in prompts.items()}
        trio.start(begin)
        for token in prompts["target"].segments[place].tokens:
            here = trio.distribution()
            if all(
                list(proxy.tokens) == list(prompts[proxy.cache.role].tokens[: len(proxy.tokens)])
                for proxy in trio.proxies
            ):
                found.observe(here.gains(token))
            trio.advance(token)
    return found


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from([1, 3, 64]))
def test_rows_of_a_prefill_say_what_the_walk_says(texts: list[bytes], max_rows: int) -> None:
    """Also where the prompt was read in batches of another size."""
    trio = toy(CombineOptions(evidence_tokens=200, grid=GRID), max_rows=max_rows)
    prompts = conversation(trio, texts)
    same(evidence_of(trio, prompts), walked(prompts, [1 + 2 * n for n in range(0, len(texts), 2)]))


@settings(max_examples=30)
@given(TEXTS, st.booleans())
def test_raw_text_has_evidence_with_and_without_a_token_before_it(text: bytes, bos: bool) -> None:
    """Models without BOS (Qwen): nothing stands before the first token that could be read."""
    trio, other = toy(), toy()
    prompts = turn(trio, text, continues_text=True, bos=bos)
    got = evidence_of(trio, prompts)
    wanted = Evidence(len(other.exponents))
    own = prompts["target"].segments[-1].tokens
    for count in range(0 if bos else 1, len(own)):
        begun = turn(other, TARGET.text(own[:count]), continues_text=True, bos=bos)
        if all(begun[r].tokens == p.tokens[: len(begun[r].tokens)] for r, p in prompts.items()):
            other.start(begun)
            wanted.observe(other.distribution().gains(own[count]))
    same(got, wanted)


@settings(max_examples=40)
@given(
    st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 64),
    st.booleans(),
)
def test_evidence_is_the_same_with_and_without_memory(
    prompts: list[list[bytes]], count: int, can_rewind: bool
) -> None:
    """Turn by turn, and any prompt after any other, as after /undo, /edit and /retry."""
    options = CombineOptions(evidence_tokens=count)
    memory, trio = Memory(), toy(options, can_rewind=can_rewind)
    turns = [prompts[0][:size] for size in range(1, len(prompts[0]) + 1)]
    for texts in (*turns, *prompts[1:]):
        fresh = toy(options)
        got = evidence_of(trio, conversation(trio, texts), memory)
        same(got, evidence_of(fresh, conversation(fresh, texts)))


def test_a_second_turn_decodes_new_tokens_alone() -> None:
    trio = toy()
    memory, again = Memory(), trio.proxies[0].depth + 1
    for size in (1, 3):
        prompts = conversation(trio, TURNS[:size])
        before = {each.role: (len(each.tokens), each.decoded) for each in trio.models}
        found = evidence_of(trio, prompts, memory)
        assert found.seen > size
        for each in trio.models:
            length, decoded = before[each.role]
            new = len(prompts[each.role].tokens) - length
            # The last tokens of the turn before, once more for their rows.
            assert 0 < each.decoded - decoded <= new + (again if length else 0)
    decoded = {each.role: each.decoded for each in trio.models}
    same(found, evidence_of(trio, prompts, memory))
    for each in trio.models:
        # The same prompt once more: what is read for the answer, nothing for the evidence.
        assert each.decoded - decoded[each.role] <= again


@pytest.mark.parametrize(
    "options",
    [
        CombineOptions(plausibility=0.1),
        CombineOptions(grid=((1.0, 0.0, 0.0), (1.0, 2.0, 2.0))),
        CombineOptions(forgetting=0.5),
        CombineOptions(evidence_tokens=4),
    ],
)
def test_other_options_do_not_reuse_what_was_remembered(options: CombineOptions) -> None:
    memory, trio = Memory(), toy()
    prompts = conversation(trio, TURNS)
    before = evidence_of(trio, prompts, memory)
    other = toy(options)
    for proxy, own in zip(other.proxies, trio.proxies, strict=True):
        proxy._alignment = own.alignment  # as the tables of one runtime
    got = evidence_of(other, prompts, memory)
    same(got, evidence_of(toy(options), prompts))
    assert got.seen != before.seen or got.weights.tolist() != before.weights.tolist()
