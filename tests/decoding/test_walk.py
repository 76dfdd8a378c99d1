"""One answer: rows as after a fresh prefill, endings, cancelling, full contexts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment import FLOOR, TargetEvents, fit
from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, FinishReason, GenerateOptions, SampleOptions
from capt_local.decoding.proxy import LogitsCache, Proxy, queries
from capt_local.decoding.reasoning import StopStrings
from capt_local.decoding.scoring import score_text
from capt_local.errors import ContextOverflow, NumericalError
from capt_local.prompting.messages import Prompt, Segment
from tests.decoding.trios import PROXY, TARGET, make_trio, tokenizers, toy, turn, walk
from tests.fakes import FakeModel, make_vocabulary, softmax, text_tokenizer

A = np.array([TARGET.byte_ids[ord("a")]], dtype=np.int32)
TEXT = st.text(alphabet="abcdiar the\né", max_size=30).map(str.encode)


def sampled(count: int, **more: object) -> GenerateOptions:
    sample = SampleOptions(temperature=1.0, seed=3)
    return GenerateOptions(max_tokens=count, sample=sample, **more)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(TEXT, TEXT, st.booleans(), st.booleans(), st.sampled_from([b"", b" "]))
def test_rows_are_those_of_a_fresh_prefill(
    first: bytes, second: bytes, can_rewind: bool, continues_text: bool, leading_space: bytes
) -> None:
    """However the text came, the proxy's rows are what the model says about its tokens."""
    target = FakeModel(TARGET, 1)
    model = FakeModel(PROXY, 2, can_rewind=can_rewind, leading_space=leading_space)
    tokens = text_tokenizer(model)
    proxy = Proxy(
        LogitsCache("expert", model), tokens, fit(PROXY, TargetEvents(text_tokenizer(target)))
    )
    user = Segment(tuple(tokens.encode(b"card", start=True)), b"card")
    for text in (first, second):  # the second prompt shares the cache of the first
        proxy.start(Prompt((Segment((0,)), user), continues_text=continues_text))
        for token in text_tokenizer(target).encode(text, start=True):
            proxy.append(token, TARGET.piece(token))
            proxy.sync()
            held = model.tokens[: len(proxy.tokens)]
            assert held == proxy.tokens[: len(held)]
            np.testing.assert_allclose(proxy.row, softmax(model.logits(proxy.tokens)), rtol=1e-4)
            places = proxy.needed_positions()
            rows = proxy.cache.logits_for(proxy.tokens, len(places), proxy.stable)
            for place, row in zip(places, rows, strict=True):
                wanted = softmax(model.logits(proxy.tokens[:place]))
                np.testing.assert_allclose(row, wanted, rtol=1e-4)
        whole = b"card" + text if continues_text else text
        canonical = tokens.encode(whole, start=True)
        if whole:
            assert proxy.tokens[-len(canonical) :] == canonical


def test_a_model_that_cannot_rewind_gives_the_same_answer_at_a_like_cost() -> None:
    answers, decoded = [], []
    letters = make_vocabulary(list("abcdr"), all_bytes=False)
    words = make_vocabulary([*"abcdr", "car", "card", "ab", "bcd"], all_bytes=False)
    for can_rewind in (True, False):
        kinds = ((letters, 1), (words, 2), (words, 3))
        trio = make_trio(*(FakeModel(each, seed, can_rewind=can_rewind) for each, seed in kinds))
        trio.start(turn(trio, b"abc"))
        answers.append([step.token for step in walk(trio, sampled(60))])
        decoded.append(sum(each.decoded for each in trio.models))
    assert answers[0] == answers[1]
    assert decoded[1] < 7 * decoded[0]  # the tail again at each step, not the text


@given(
    st.lists(st.binary(max_size=3), max_size=20),
    st.lists(st.sampled_from(["ab", "aab", "b", "abab"]), min_size=1, max_size=3),
)
def test_stop_strings_in_any_split(pieces: list[bytes], stops: list[str]) -> None:
    stream, out = StopStrings(stops), b""
    for piece in pieces:
        out += stream.feed(piece)
        if stream.found:
            break
    whole = b"".join(pieces)
    places = [place for stop in stops if (place := whole.find(stop.encode())) >= 0]
    assert stream.found == bool(places)
    assert out + stream.flush() == (whole[: min(places)] if places else whole)


def test_length_and_end() -> None:
    trio = toy()
    steps = list(walk(trio, sampled(4)))
    assert [step.finish for step in steps] == [None, None, None, FinishReason.LENGTH]
    ending = toy(end_logit=30.0)
    (step,) = walk(ending, sampled(9))
    assert (step.finish, step.piece_bytes, step.token) == (FinishReason.STOP, b"", 1)


def test_cancelling_leaves_all_models_at_one_text() -> None:
    trio = toy()
    seen: list[int] = []
    made = walk(trio, sampled(50), cancel=lambda: len(seen) == 7)
    for step in made:
        seen.append(step.token)
    assert made.finish is FinishReason.INTERRUPTED and len(seen) == 7
    trio.distribution()
    text = TARGET.text(trio.tokens)
    for proxy in trio.proxies:
        assert PROXY.text(proxy.cache.tokens) == text
        assert proxy.cache.model.position == len(proxy.tokens)


def test_a_full_context_ends_the_answer_and_says_so() -> None:
    trio = toy(limit=40)
    made = walk(trio, sampled(500))
    steps = list(made)
    assert made.finish is FinishReason.LENGTH and len(steps) < 40
    assert "is full" in made.notices[0]


def test_a_prompt_that_does_not_fit_is_refused_with_all_counts_and_nothing_is_decoded() -> None:
    trio = toy(limit=8)
    with pytest.raises(ContextOverflow, match=r"target .*expert .*base .*holds 8"):
        trio.start(turn(trio, b"abcd" * 20))
    assert trio.leader.decoded == 0


def test_a_penalty_is_not_counted_as_a_change_by_the_expert() -> None:
    trio = toy(CombineOptions(alphas=(0.0,)))
    sample = SampleOptions(repeat_penalty=4.0)
    steps = list(walk(trio, GenerateOptions(max_tokens=40, sample=sample)))
    assert any(step.target_rank for step in steps)
    assert not any(step.changed for step in steps)


def test_the_leading_space_of_the_targets_tokenizer_is_no_part_of_the_answer() -> None:
    """A target that writes " card" at the beginning of a text says "card" to its proxies."""
    target = FakeModel(TARGET, 1, leading_space=b" ")
    trio = make_trio(
        target, FakeModel(PROXY, 2), FakeModel(PROXY, 3), CombineOptions(alphas=(1.0,))
    )
    prompts = turn(trio)
    prompts["target"] = dataclasses.replace(prompts["target"], leading_space=b" ")
    trio.start(prompts)
    here = trio.distribution()
    names = [TARGET.piece(token) for token in here.candidates.tokens.tolist()]
    word = names.index(b" a")
    own = here.candidates
    alignment = trio.proxies[0].alignment
    wanted = alignment.query(own.tokens, np.exp(own.logp), start=True).wanted[word]
    assert wanted == alignment.query(A, np.ones(1)).wanted[0]
    question = queries(own, trio.proxies, start=True)
    expert, base = (
        proxy.probability(question[id(proxy.alignment)])[word] + FLOOR for proxy in trio.proxies
    )
    assert here.contrast[word] == pytest.approx(np.log(expert / base))
    unlike = queries(own, trio.proxies)
    assert trio.proxies[0].probability(unlike[id(trio.proxies[0].alignment)])[word] != expert
    trio.advance(int(here.candidates.tokens[word]))
    trio.distribution()
    for proxy in trio.proxies:
        assert PROXY.text(proxy.tokens[proxy._context.fixed :]) == b"a"
    assert trio.piece(int(here.candidates.tokens[word])) == b" a"


def test_an_error_ends_the_answer_as_an_error() -> None:
    trio = toy()
    prompts = turn(trio)
    generation = Generation(trio, prompts, sampled(20, stop=("\x00never",)), None)
    next(generation)

    def fail(*_: object, **__: object) -> None:
        raise NumericalError("broken")

    trio.leader.model.extend = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(NumericalError):
        next(generation)
    assert generation.finish is FinishReason.ERROR
    assert list(generation) == []


def test_control_tokens_have_no_contrast_where_one_proxy_has_no_event_for_them() -> None:
    """The expert shares the target's vocabulary, the base does not."""
    target, expert, base = FakeModel(TARGET, 1), FakeModel(TARGET, 2), FakeModel(PROXY, 3)
    events = TargetEvents(text_tokenizer(target))
    proxies = [
        Proxy(LogitsCache(role, each), text_tokenizer(each), fit(each.vocabulary, events))
        for role, each in (("expert", expert), ("base", base))
    ]
    options = CombineOptions(alphas=(1.0,), plausibility=0.0)
    trio = Ensemble(LogitsCache("target", target), proxies, options)
    trio.start(turn(trio))
    here = trio.distribution()
    assert here.contrast[0] == 0.0
    assert np.abs(here.contrast).max() <= np.log(1 / FLOOR) + 1e-6


def test_a_text_is_scored_alike_whatever_was_written_before() -> None:
    """Rows of an answer that begins where the text does are not those of the text."""
    text = b"cardiac the abc"
    for continues_text in (True, False):
        used, new = (toy(CombineOptions(alphas=(1.0,))) for _ in range(2))
        turn(used, b"a", continues_text=continues_text)
        list(walk(used, sampled(3)))
        wanted = score_text(new, tokenizers(new), text).nats
        assert score_text(used, tokenizers(used), text).nats == pytest.approx(wanted, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 16), st.booleans()), max_size=12))
def test_rows_of_any_texts_are_those_of_the_model(asked: list[tuple[int, int, bool]]) -> None:
    """Many rows or few, of texts that go on, go back or go another way."""
    model = FakeModel(PROXY, 2, max_rows=16)
    cache = LogitsCache("expert", model)
    cache.set_row_transform(np.copy)
    for size, count, other in asked:
        tokens = [5] * (size // 2) + [6 + other] * (size - size // 2) if other else [5] * size
        count = min(count, size)
        rows = cache.logits_for(tokens, count)
        for place, row in zip(range(size - count + 1, size + 1), rows, strict=True):
            assert np.array_equal(row, model.logits(tokens[:place]))
