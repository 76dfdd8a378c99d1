"""The exact proxy inside a trio, against enumeration of all tokenizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment.events import END_EVENT, TargetEvents
from capt_local.alignment.exact.coverings import Coverings
from capt_local.alignment.kinds import Align
from capt_local.decoding.exact import ExactProxy
from capt_local.decoding.generation import Generation
from capt_local.decoding.options import AlignOptions, CombineOptions, GenerateOptions, SampleOptions
from capt_local.decoding.trio import Trio
from capt_local.errors import ContextOverflow, ModelError
from capt_local.prompting.messages import Prompt, Segment
from tests.decoding.trios import assembly, turn
from tests.fakes import FakeModel, make_vocabulary, softmax, text_tokenizer

LETTERS = make_vocabulary([*"abc ", "ab", "abc", " a", "bc"], all_bytes=False)
PIECES = make_vocabulary([*"abc ", "abca", "bca", "ab", "ca", " ab"], all_bytes=False)
TEXTS = st.text(alphabet="abc ", min_size=1, max_size=5).map(str.encode)


def exact(
    options: CombineOptions | None = None, proxy: object = PIECES, **kinds: object
) -> tuple[Trio, GenerateOptions]:
    """A trio whose proxies sum over all tokenizations, and the options that ask for it."""
    kinds = {"end_logit": -1.0, "scale": 1.5, **kinds}
    models = {
        role: FakeModel(vocabulary, seed, **kinds)  # type: ignore[arg-type]
        for role, vocabulary, seed in (
            ("target", LETTERS, 1),
            ("expert", proxy, 2),
            ("base", proxy, 3),
        )
    }
    made = GenerateOptions(
        align=AlignOptions(Align.EXACT), combine=options or CombineOptions(), max_tokens=8
    )
    return assembly(models).trio(made), made


def all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sequence is left out of the beam."""

    def endless(*args: Any, **_: Any) -> Coverings:
        return Coverings(*args, width=10**6, drop=0.0, horizon=10**6)

    monkeypatch.setattr("capt_local.decoding.exact.Coverings", endless)


def brute(model: FakeModel, tokens: tuple[int, ...], text: bytes) -> float:
    """The probability that the text goes on with `text` after tokens: over all pieces."""
    if not text:
        return 1.0
    row, total = softmax(model.logits(tokens)), 0.0
    for token in np.flatnonzero(model.vocabulary.is_text).tolist():
        piece = model.vocabulary.piece(token)
        if piece.startswith(text):
            total += row[token]
        elif text.startswith(piece):
            total += row[token] * brute(model, (*tokens, token), text[len(piece) :])
    return float(total)


def brute_end(model: FakeModel, tokens: tuple[int, ...], text: bytes) -> float:
    """The probability of this text and then an end."""
    row = softmax(model.logits(tokens))
    if not text:
        return float(row[model.vocabulary.end_ids].sum())
    return sum(
        float(row[token]) * brute_end(model, (*tokens, token), text[len(piece) :])
        for token in np.flatnonzero(model.vocabulary.is_text).tolist()
        if text.startswith(piece := model.vocabulary.piece(token))
    )


def compare(trio: Trio, head: tuple[int, ...], text: bytes, tolerance: float = 1e-4) -> None:
    """Every event of the target under each proxy, given the text behind the head."""
    events = TargetEvents(text_tokenizer(trio.cached.model))  # type: ignore[arg-type]
    tokens = np.arange(len(LETTERS), dtype=np.int32)
    trio.settle()
    for proxy in trio.proxies:
        assert isinstance(proxy, ExactProxy)
        model = FakeModel(
            PIECES, 2 if proxy.cached.role == "expert" else 3, end_logit=-1.0, scale=1.5
        )
        question = proxy.alignment.ask(tokens, np.ones(len(tokens)))
        got = proxy.probability(question)
        before = brute(model, head, text)
        for event, chance in zip(question.wanted.tolist(), got.tolist(), strict=True):
            if event < 0:
                assert chance == 0.0
                continue
            if event == END_EVENT:
                wanted = brute_end(model, head, text) / before
            else:
                wanted = brute(model, head, text + events.piece(event)) / before
            assert chance == pytest.approx(wanted, rel=tolerance, abs=1e-9)


@settings(max_examples=15)
@given(TEXTS, st.lists(st.integers(2, len(LETTERS) - 1), max_size=3))
def test_what_a_proxy_says_is_the_sum_over_all_tokenizations(
    prompt: bytes, answer: list[int]
) -> None:
    """A turn: the prompt stays as it was tokenized, the answer may be covered in any way."""
    with pytest.MonkeyPatch.context() as patched:
        all_of_it(patched)
        trio, _ = exact()
        prompts = turn(trio, prompt)
        trio.start(prompts)
        for token in answer:
            trio.advance(token)
            trio.settle()
        compare(trio, prompts["expert"].tokens, LETTERS.text(answer))


@settings(max_examples=15)
@given(TEXTS, st.lists(st.integers(2, len(LETTERS) - 1), max_size=2), st.booleans())
def test_raw_text_may_be_covered_in_any_way_from_its_last_safe_cut_on(
    text: bytes, answer: list[int], bos: bool
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        all_of_it(patched)
        trio, _ = exact()
        prompts = turn(trio, text, goes_on=True, bos=bos)
        trio.start(prompts)
        for token in answer:
            trio.advance(token)
        tokenizer = text_tokenizer(FakeModel(PIECES, 2))
        cut = tokenizer.last_cut(text)
        head = (*((0,) if bos else ()), *tokenizer.encode(text[:cut], start=True))
        if not head:  # nothing stands before the first token of all, so it is taken as it is
            head = (tokenizer.encode(text, start=True)[0],)
            cut = len(PIECES.text(head))
        compare(trio, head, text[cut:] + LETTERS.text(answer))


def test_the_beam_is_close_to_the_sum() -> None:
    trio, _ = exact()
    prompts = turn(trio, b"abc ab")
    trio.start(prompts)
    for token in text_tokenizer(trio.cached.model).encode(b"abca", start=True):  # type: ignore[arg-type]
        trio.advance(token)
    compare(trio, prompts["expert"].tokens, b"abca", tolerance=0.05)


@pytest.mark.parametrize("combine", [CombineOptions(), CombineOptions(alphas=(1.0,))])
def test_generating_and_scoring_agree(combine: CombineOptions) -> None:
    """The same chain of distributions, from a prompt and from the beginning of a text."""
    trio, options = exact(combine)
    prompts = turn(trio, b"abc ab a")
    options = GenerateOptions(
        align=options.align, combine=combine, max_tokens=10, sample=SampleOptions(temperature=1.0)
    )
    generation = Generation(trio, prompts, options, None)
    steps = list(generation)
    assert steps and (generation.evidence_tokens > 0) == combine.mixes
    trio.start(prompts)
    trio.observe(np.array([weight for _, weight in generation.weights]))
    for step in steps:
        here = trio.distribution()
        assert here.token_logp(step.token) == pytest.approx(step.logp, rel=1e-9)
        total = sum(np.exp(here.token_logp(token)) for token in range(len(LETTERS)))
        assert total == pytest.approx(1.0, abs=1e-6)
        trio.advance(step.token)


def test_a_second_answer_begins_afresh() -> None:
    trio, _ = exact(CombineOptions(alphas=(1.0,)))
    prompts = turn(trio, b"abc ab")
    said = []
    for _ in range(2):
        trio.start(prompts)
        trio.advance(4)
        said.append(trio.distribution().logp)
        assert trio.proxies[0].row.shape == (len(PIECES),)  # the model moves away and comes back
        trio.advance(5)
        said.append(trio.distribution().logp)
    np.testing.assert_array_equal(said[0], said[2])
    np.testing.assert_array_equal(said[1], said[3])


def test_a_text_that_the_proxy_cannot_spell_has_no_probability_and_is_not_told() -> None:
    trio, _ = exact(CombineOptions(alphas=(1.0,)), proxy=make_vocabulary([*"ab "], all_bytes=False))
    prompts = {each.role: Prompt((Segment((0,)),), goes_on=False) for each in trio.models}
    trio.start(prompts)
    trio.advance(LETTERS.byte_ids[ord("c")])
    with pytest.raises(ModelError, match="exact probability") as error:
        trio.distribution()
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_a_prompt_that_does_not_fit_is_refused_and_a_full_context_ends_the_answer() -> None:
    trio, _ = exact(limit=12)
    with pytest.raises(ContextOverflow):
        trio.start(turn(trio, b"a b c a b c a b c"))
    trio, options = exact(CombineOptions(alphas=(1.0,)), limit=14, end_logit=-40.0)
    options = GenerateOptions(align=options.align, combine=options.combine, max_tokens=50)
    generation = Generation(trio, turn(trio, b"a b c"), options, None)
    steps = list(generation)
    assert 0 < len(steps) < 14 and "context is full" in generation.notices[0]
