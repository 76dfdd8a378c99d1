"""The evidence of a prompt: read in batches, remembered, and never from other text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import GRID, CombineOptions, GenerateOptions
from capt_local.decoding.prompt_weights import Evidence, Memory, prefill
from capt_local.prompting.messages import Prompt, Segment
from tests.decoding.trios import PROXY, TARGET, assembly, toy, turn
from tests.fakes import FakeModel, text_tokenizer

# Each turn of the user, and what was said in between.
TURNS = [b"abc the card", b" the cardiac a", b"ab abc the a", b"cardiac"]
TEXTS = st.text(alphabet="abcdiar the", min_size=1, max_size=24).map(str.encode)


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


def evidence(trio: Ensemble, prompts: dict[str, Prompt], memory: Memory | None = None) -> Evidence:
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


def walked(prompts: dict[str, Prompt], turns: list[int], **kinds: object) -> tuple[Evidence, int]:
    """The same evidence from the walk, token by token, without any batch."""
    trio = toy(CombineOptions(grid=GRID), **kinds)  # type: ignore[arg-type]
    found = Evidence(len(trio.exponents))
    segments = prompts["target"].segments
    for turn_place in turns:
        begin = {
            r: dataclasses.replace(p, segments=p.segments[:turn_place]) for r, p in prompts.items()
        }
        trio.start(begin)
        for token in segments[turn_place].tokens:
            here = trio.distribution()
            if all(
                list(proxy.tokens) == list(prompts[proxy.cache.role].tokens[: len(proxy.tokens)])
                for proxy in trio.proxies
            ):
                found.observe(here.gains(token))
            trio.advance(token)
    return found, found.seen


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from([1, 3, 64]))
def test_rows_of_a_prefill_say_what_the_walk_says(texts: list[bytes], max_rows: int) -> None:
    """Also where the prompt was read in batches of another size."""
    trio = toy(CombineOptions(evidence_tokens=200, grid=GRID), max_rows=max_rows)
    prompts = conversation(trio, texts)
    got = evidence(trio, prompts)
    wanted, places = walked(prompts, [1 + 2 * n for n in range(0, len(texts), 2)])
    assert got.seen == places
    np.testing.assert_array_equal(got.weights, wanted.weights)


@settings(max_examples=30)
@given(TEXTS, st.booleans())
def test_raw_text_has_evidence_with_and_without_a_token_before_it(text: bytes, bos: bool) -> None:
    """Models without BOS (Qwen): nothing stands before the first token that could be read."""
    trio, other = toy(), toy()
    prompts = turn(trio, text, goes_on=True, bos=bos)
    got = evidence(trio, prompts)
    trio.distribution()
    wanted = Evidence(len(other.exponents))
    own = prompts["target"].segments[-1].tokens
    for count in range(0 if bos else 1, len(own)):
        begun = turn(other, TARGET.text(own[:count]), goes_on=True, bos=bos)
        if all(begun[r].tokens == p.tokens[: len(begun[r].tokens)] for r, p in prompts.items()):
            other.start(begun)
            wanted.observe(other.distribution().gains(own[count]))
    same(got, wanted)


def test_what_the_program_said_is_no_evidence() -> None:
    trio = toy()
    user, said = conversation(trio, [b"abc"]), conversation(trio, [b"abc", b"cardiac the card"])
    same(evidence(trio, user), evidence(trio, said))


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 64), st.booleans())
def test_evidence_is_the_same_with_and_without_memory(
    texts: list[bytes], count: int, can_rewind: bool
) -> None:
    """Turn by turn in one trio with one memory, or each prompt in a trio of its own."""
    options = CombineOptions(evidence_tokens=count)
    memory, trio = Memory(), toy(options, can_rewind=can_rewind)
    for size in range(1, len(texts) + 1):
        prompts = conversation(trio, texts[:size])
        fresh = toy(options)
        same(evidence(trio, prompts, memory), evidence(fresh, conversation(fresh, texts[:size])))


def test_a_second_turn_decodes_new_tokens_alone() -> None:
    kinds = {"target": (TARGET, 1), "expert": (PROXY, 2), "base": (PROXY, 3)}
    trio = assembly({r: FakeModel(*kind) for r, kind in kinds.items()}).build(GenerateOptions())
    memory, again = Memory(), trio.proxies[0].alignment.depth + 1
    for size in (1, 3):
        prompts = conversation(trio, TURNS[:size])
        before = {each.role: (len(each.tokens), each.decoded) for each in trio.models}
        trio.start(prompts)
        found = prefill(trio, prompts, memory)
        assert found.seen > size
        for each in trio.models:
            length, decoded = before[each.role]
            new = len(prompts[each.role].tokens) - length
            # The last tokens of the turn before, once more for their rows.
            assert 0 < each.decoded - decoded <= new + (again if length else 0)
    before = {each.role: (len(each.tokens), each.decoded) for each in trio.models}
    trio.start(prompts)
    same(found, prefill(trio, prompts, memory))
    for each in trio.models:
        # The same prompt once more: what is read for the answer, nothing for the evidence.
        assert each.decoded - before[each.role][1] <= again


@settings(max_examples=40)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=2, max_size=4))
def test_undo_and_edits_forget_what_no_longer_stands(prompts: list[list[bytes]]) -> None:
    """Any prompt after any other, as after /undo, /edit and /retry."""
    memory, trio = Memory(), toy()
    for texts in prompts:
        fresh = toy()
        got = evidence(trio, conversation(trio, texts), memory)
        same(got, evidence(fresh, conversation(fresh, texts)))


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
    memory, trio, fresh = Memory(), toy(), toy(options)
    prompts = conversation(trio, TURNS)
    before = evidence(trio, prompts, memory)
    got = evidence(toy(options), prompts, memory)
    same(got, evidence(fresh, prompts))
    assert got.seen != before.seen or (got.weights.tolist() != before.weights.tolist())
