"""Known text and given answers: against steps, sums by hand and full enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GRID, CombineOptions, FinishReason, GenerateOptions, Method
from capt_local.decoding.prompt_weights import Evidence, prefill
from capt_local.decoding.scoring import (
    MARGIN,
    AnswerScore,
    AnswerScorer,
    ChoiceCriterion,
    empty_prompts,
    score_paths,
    score_text,
)
from capt_local.errors import Cancelled, ContextOverflow, UnspellableText, UsageError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization import TextTokenizer
from tests.decoding.trios import PROXY, TARGET, assembly, make_trio, tokenizers, toy, turn
from tests.fakes import FakeModel, make_vocabulary, softmax, text_tokenizer

TEXT = st.text(alphabet="abcdiar the\né", min_size=1, max_size=60).map(str.encode)
LETTERS = make_vocabulary(list("abcdr"), all_bytes=False)
WORDS = make_vocabulary([*"abcdr", "car", "card", "ab", "bcd"], all_bytes=False)


# Known text, against the same token by token, as an answer is generated.


def text_nats(
    trio: Ensemble, tokenizers: Mapping[str, TextTokenizer], text: bytes
) -> tuple[float, int]:
    """-log p of a text, and the number of its windows."""
    nats, windows = 0.0, 0
    evidence = Evidence(len(trio.exponents)) if trio.mixes else None
    for place, token in enumerate(tokenizers[trio.leader.role].encode(text, start=True)):
        if place == 0 or trio.tokens_left <= MARGIN:
            trio.start(empty_prompts(trio.models, tokenizers, first=place == 0), reserve=MARGIN + 1)
            windows += 1
        if evidence is not None:
            trio.set_weights(evidence.weights)
        here = trio.distribution()
        nats -= here.token_logp(token)
        if evidence is not None:
            evidence.observe(here.gains(token))
        trio.advance(token)
    return nats, windows


def path_logps(
    trio: Ensemble, prompts: Mapping[str, Prompt], paths: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probabilities of the tokens of each path behind the prompt."""
    found = []
    for path in paths:
        trio.start(prompts)
        prefill(trio, prompts)
        logps = []
        for token in path:
            logps.append(trio.distribution().token_logp(token))
            trio.advance(token)
        found.append(logps)
    return found


@settings(deadline=None, max_examples=40)
@given(
    TEXT, st.booleans(), st.sampled_from([4, 7, 16]), st.sampled_from([b"", b" "]), st.booleans()
)
def test_one_pass_gives_what_steps_give(
    text: bytes, can_rewind: bool, rows: int, leading_space: bytes, weighs: bool
) -> None:
    """In texts whose proxy tokens change while they grow; windows included."""
    options = CombineOptions() if weighs else CombineOptions(alphas=(1.0,))

    def trio(can_rewind: bool) -> Ensemble:
        proxies = (
            FakeModel(PROXY, seed, can_rewind=can_rewind, max_rows=rows, limit=70)
            for seed in (2, 3)
        )
        target = FakeModel(TARGET, 1, max_rows=rows, leading_space=leading_space, limit=64)
        return make_trio(target, *proxies, options)

    one, other = trio(can_rewind), trio(True)
    got = score_text(one, tokenizers(one), text * 3)
    nats, windows = text_nats(other, tokenizers(other), text * 3)
    assert got.nats == pytest.approx(nats, rel=1e-6)
    assert got.windows == windows


@pytest.mark.parametrize("method", list(Method))
def test_every_method_is_scored_as_step_by_step(method: Method) -> None:
    own = PROXY if method is Method.PROXY_TUNING else TARGET
    kinds = {"target": (own, 1), "expert": (PROXY, 2), "base": (PROXY, 3)}
    models = {role: FakeModel(*kind) for role, kind in kinds.items()}
    text = b"abc the cardiac card\n\nabcab the abc" * 2
    trio = assembly(models).build(GenerateOptions(method=method), scoring=True)
    names = {role: text_tokenizer(model) for role, model in models.items()}
    got = score_text(trio, names, text)
    assert got.nats == pytest.approx(text_nats(trio, names, text)[0], rel=1e-6)


def test_known_text_goes_through_the_models_in_batches() -> None:
    """Each token of the target once; of a proxy more, since these vocabularies often disagree."""
    trio = toy(CombineOptions(alphas=(1.0,)), max_rows=16)
    text = b"abc the cardiac card abcab the abc" * 5
    score = score_text(trio, tokenizers(trio), text)
    assert trio.leader.decoded == score.tokens
    assert trio.leader.passes <= math.ceil(score.tokens / 16) + 1
    for proxy in trio.proxies:
        assert proxy.cache.passes < 0.7 * score.tokens
        whole = text_tokenizer(proxy.cache.model).encode(text, start=True)
        assert proxy.cache.decoded < 5 * len(whole)


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXT, min_size=1, max_size=5, unique=True), st.booleans(), st.booleans())
def test_paths_that_part_and_meet_are_scored_as_step_by_step(
    texts: list[bytes], weighs: bool, can_rewind: bool
) -> None:
    options = CombineOptions() if weighs else CombineOptions(alphas=(0.5,))
    one, other = toy(options, can_rewind=can_rewind), toy(options)
    encode = text_tokenizer(FakeModel(TARGET, 1)).encode
    paths = [tuple(encode(text[:12], start=False)) for text in texts]
    got = score_paths(one, turn(one), paths, end=False)
    for ours, theirs in zip(got, path_logps(other, turn(other), paths), strict=True):
        assert [each.logp for each in ours] == pytest.approx(theirs, rel=1e-5)


# Given answers.


def letters(options: CombineOptions | None = None) -> Ensemble:
    """A trio whose target has one token for each letter, so that every answer is canonical."""
    kinds = ((LETTERS, 1), (WORDS, 2), (WORDS, 3))
    return make_trio(*(FakeModel(*kind, end_logit=0.0) for kind in kinds), options)


def judge(
    trio: Ensemble, text: bytes = b"abc the card", *, continues_text: bool = False
) -> AnswerScorer:
    return AnswerScorer(trio, tokenizers(trio), turn(trio, text, continues_text=continues_text))


def score(answers: AnswerScorer, text: bytes, *, end: bool = False) -> AnswerScore:
    (found,) = answers.scores((text,), end=end)
    return found


def alone(**kinds: object) -> Ensemble:
    return Ensemble(toy(**kinds).leader)  # type: ignore[arg-type]


def by_hand(seen: list[int], tokens: list[int]) -> float:
    """-log p of the target's tokens behind others, from the softmax of its own rows."""
    nats, seen, model = 0.0, list(seen), FakeModel(TARGET, 1)
    for token in tokens:
        nats -= math.log(softmax(model.logits(seen))[token])
        seen.append(token)
    return nats


def encoded(text: bytes, *, start: bool = True) -> list[int]:
    return text_tokenizer(FakeModel(TARGET, 1)).encode(text, start=start)


def test_the_target_alone_gives_the_sum_of_its_log_softmax() -> None:
    got, tokens = score(judge(alone()), b"cardiac ab"), encoded(b"cardiac ab")
    assert got.nats == pytest.approx(by_hand([0, *encoded(b"abc the card")], tokens), rel=1e-5)
    assert (got.tokens, got.size) == (len(tokens), 10)


@pytest.mark.parametrize(
    ("alphas", "prompt"), [((), b"addd"), ((), b"bacc"), ((1.0,), b"bbca"), ((1.0,), b"addd")]
)
def test_a_greedy_answer_has_the_probability_that_generating_gave_it(
    alphas: tuple[float, ...], prompt: bytes
) -> None:
    trio = letters(CombineOptions(alphas=alphas, grid=GRID))
    options = GenerateOptions(max_tokens=12, combine=trio.options)
    generation = Generation(trio, turn(trio, prompt), options)
    steps = list(generation)
    ended = generation.finish is FinishReason.STOP
    said = steps[:-1] if ended else steps
    assert generation.changed and len(said) > 4
    answers, text = judge(trio, prompt), generation.text_bytes
    got = score(answers, text)
    assert got.greedy and got.tokens == len(said)
    assert got.nats == pytest.approx(-sum(step.logp for step in said), rel=1e-5)
    whole = score(answers, text, end=True)
    assert whole.greedy == ended and whole.nats > got.nats
    if ended:
        assert whole.nats == pytest.approx(got.nats - steps[-1].logp, rel=1e-5)
    assert not score(answers, text[:-1] + (b"a" if text[-1:] != b"a" else b"b")).greedy


@pytest.mark.parametrize("alphas", [(), (1.0,)])
def test_all_continuations_of_n_tokens_sum_to_one(alphas: tuple[float, ...]) -> None:
    trio = letters(CombineOptions(alphas=alphas, plausibility=1e-2))
    paths = list(itertools.product(range(len(LETTERS)), repeat=3))
    said = score_paths(trio, turn(trio, b"abccard"), paths, end=False)
    total = sum(math.exp(sum(one.logp for one in path)) for path in said)
    assert total == pytest.approx(1.0, rel=1e-4)
    (likeliest,) = [path for path in said if all(one.likeliest for one in path)]
    assert likeliest[0].logp == pytest.approx(max(path[0].logp for path in said))


@settings(deadline=None, max_examples=60)
@given(
    st.text("abcdiar the", min_size=1, max_size=14), st.text("abcdiar t", min_size=1, max_size=9)
)
def test_raw_text_and_answer_are_the_canonical_tokens_of_the_whole(text: str, more: str) -> None:
    """The token that straddles the boundary is scored given its beginning in the prompt."""
    before, whole = text.encode(), encoded((text + more).encode())
    got = score(judge(alone(), before, continues_text=True), more.encode())
    ends = list(itertools.accumulate(len(TARGET.piece(token)) for token in whole))
    inside = [end for end in ends if end <= len(before)]
    if not inside:  # one word from the very beginning: scored in parts
        wanted = by_hand([0, *encoded(before)], encoded(more.encode(), start=False))
    else:
        seen, given_bytes = [0, *whole[: len(inside)]], before[inside[-1] :]
        wanted = by_hand(seen, whole[len(inside) :])
        if given_bytes:
            row = softmax(FakeModel(TARGET, 1).logits(seen))
            pieces = enumerate(TARGET.pieces())
            begins = [t for t, one in pieces if one.startswith(given_bytes) and TARGET.is_text[t]]
            wanted += math.log(row[begins].sum())
    assert got.nats == pytest.approx(wanted, rel=1e-5) and got.size == len(more)


@pytest.mark.parametrize("begin", [b"a", b"c", b"card"])
def test_what_may_begin_with_the_given_bytes_sums_to_one(begin: bytes) -> None:
    trio = toy(CombineOptions(plausibility=1e-2))
    begins = [(t,) for t, piece in enumerate(TARGET.pieces()) if piece.startswith(begin)]
    said = score_paths(trio, turn(trio), begins, end=False, prefix=begin)
    assert sum(math.exp(path[0].logp) for path in said) == pytest.approx(1.0, rel=1e-4)
    assert sum(path[0].likeliest for path in said) == 1


def test_a_space_that_the_tokenizer_puts_in_front_is_no_part_of_the_answer() -> None:
    target = FakeModel(TARGET, 1, leading_space=b" ")
    trio = Ensemble(make_trio(target, FakeModel(TARGET, 2), FakeModel(TARGET, 3)).leader)
    names = tokenizers(trio)
    got = score(AnswerScorer(trio, names, empty_prompts(trio.models, names)), b"a card")
    tokens = [TARGET.pieces().index(b" a"), TARGET.byte_ids[ord(" ")]]
    tokens.append(TARGET.pieces().index(b"card"))
    assert got.nats == pytest.approx(by_hand([0], tokens), rel=1e-5)
    assert got.size == 6


def test_prompt_and_common_beginnings_are_decoded_once() -> None:
    trio = toy()
    prompts, answers = turn(trio), judge(trio)
    answers.choose([b"abc", b"cardiac", b" the"])  # one token each: nothing behind the prompt
    assert trio.leader.decoded == len(prompts["target"].tokens)
    for cached in trio.models:
        cached.rewind(0)
        cached.decoded = 0
    answers.choose([b"abccardiac", b"abc the", b"abc a"])  # two tokens, the first in common
    assert trio.leader.decoded == len(prompts["target"].tokens) + 1
    longest = max(len(prompts[proxy.cache.role].tokens) for proxy in trio.proxies)
    assert all(proxy.cache.decoded <= longest + 6 for proxy in trio.proxies)


def test_lengths_count_as_asked() -> None:
    answers, choices = judge(toy()), [b"xyz", b"cardiac the card a ab abc", b"yxz the"]
    scores = answers.scores(choices)
    wanted = {
        ChoiceCriterion.LIKELIHOOD: [one.nats for one in scores],
        ChoiceCriterion.PER_BYTE: [one.nats / one.size for one in scores],
        ChoiceCriterion.PER_TOKEN: [one.nats / one.tokens for one in scores],
    }
    found = [answers.choose(choices, how).index for how in wanted]
    assert found == [int(np.argmin(rates)) for rates in wanted.values()] and len(set(found)) > 1


def test_a_choice_that_another_begins_with_is_weighed_with_its_end() -> None:
    """Without it "a" could not be less likely than "ab"."""
    choices, found = [b"a", b"ab", b"c"], set()
    for prompt in (b"abc", b"card", b"dab", b"rrr", b"cab", b"bad", b"acc"):
        answers = judge(letters(CombineOptions(alphas=(1.0,))), prompt)
        got, whole = answers.choose(choices), answers.scores(choices, end=True)
        assert got.logps == pytest.approx([-one.nats for one in whole])
        assert got.index == int(np.argmax(got.logps))
        found.add(got.index)
        assert answers.choose([b"ab", b"c"]).scores == answers.scores([b"ab", b"c"])
    assert 1 in found


def test_a_full_context_is_used_to_its_last_token_and_no_further() -> None:
    room = 20 - 1 - len(encoded(b"abc"))
    assert score(judge(alone(limit=20), b"abc"), b"x" * room, end=True).tokens == room
    with pytest.raises(ContextOverflow):
        score(judge(alone(limit=20), b"abc"), b"x" * (room + 1))
    trio = toy(limit=40)
    with pytest.raises(ContextOverflow, match=r"target \d+, expert \d+, base \d+ .*holds 40"):
        judge(trio).scores([b"abc", b"zyx" * 40])
    assert [each.decoded for each in trio.models] == [0, 0, 0]


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([], "no choices"),
        ([b"zyx", b"zyx"], "same"),
        ([b"zyx", b""], "empty"),
        ([b"\xff"], "UTF-8"),
    ],
)
def test_choices_without_a_meaning_are_refused(choices: list[bytes], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        judge(toy()).choose(choices)
    assert "zyx" not in str(error.value)


def test_an_answer_that_cannot_be_spelt_is_refused_without_its_text() -> None:
    trio = letters()

    def known(text: bytes, *, special: bool) -> list[int]:
        return [LETTERS.byte_ids[byte] for byte in text if byte in LETTERS.byte_ids]

    trio.leader.model.tokenize = known  # type: ignore[method-assign]
    with pytest.raises(UnspellableText, match="no token for the byte 0x7a") as error:
        judge(trio, b"abc").choose([b"zyx", b"a"])
    assert "zyx" not in str(error.value)


def test_scoring_stops_when_it_is_told_to() -> None:
    trio = toy()
    with pytest.raises(Cancelled):
        AnswerScorer(trio, tokenizers(trio), turn(trio), cancel=lambda: True).scores([b"abc"])
