"""Given answers: against sums by hand, against what generating says, and by full enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import GRID, CombineOptions, GenerateOptions
from capt_local.decoding.scoring import Answers, Choosing, opening, score_paths
from capt_local.decoding.step import FinishReason
from capt_local.errors import Cancelled, ContextOverflow, UnspellableText, UsageError
from capt_local.prompting.messages import Prompt
from capt_local.tokenization.tokenizer import TextTokenizer
from tests.decoding.trios import TARGET, make_trio, toy, turn
from tests.fakes import FakeModel, make_vocabulary, softmax, text_tokenizer

LETTERS = make_vocabulary(list("abcdr"), all_bytes=False)
WORDS = make_vocabulary([*"abcdr", "car", "card", "ab", "bcd"], all_bytes=False)


def letters(options: CombineOptions | None = None, **kinds: object) -> Ensemble:
    """A trio whose target has one token for each letter, so that every answer is canonical."""
    kinds = {"end_logit": 0.0, **kinds}
    models = [
        FakeModel(vocabulary, seed, **kinds)  # type: ignore[arg-type]
        for vocabulary, seed in ((LETTERS, 1), (WORDS, 2), (WORDS, 3))
    ]
    return make_trio(*models, options)


def tokenizers(trio: Ensemble) -> dict[str, TextTokenizer]:
    return {each.role: text_tokenizer(each.model) for each in trio.models}  # type: ignore[arg-type]


def answers(trio: Ensemble, prompts: dict[str, Prompt]) -> Answers:
    return Answers(trio, tokenizers(trio), prompts)


def alone(**kinds: object) -> Ensemble:
    return Ensemble(toy(**kinds).leader)  # type: ignore[arg-type]


def by_hand(seen: list[int], tokens: list[int], model: FakeModel) -> float:
    """-log p of tokens behind others, from the softmax of the model's own rows."""
    nats, seen = 0.0, list(seen)
    for token in tokens:
        nats -= math.log(softmax(model.logits(seen))[token])
        seen.append(token)
    return nats


def test_the_target_alone_gives_the_sum_of_its_log_softmax() -> None:
    trio = alone()
    prompts = turn(trio)
    got = answers(trio, prompts).score(b"cardiac ab")
    model = FakeModel(TARGET, 1)
    tokens = text_tokenizer(model).encode(b"cardiac ab", start=True)
    wanted = by_hand(list(prompts["target"].tokens), tokens, model)
    assert got.nats == pytest.approx(wanted, rel=1e-5)
    assert (got.tokens, got.size) == (len(tokens), 10)


@pytest.mark.parametrize(
    ("alphas", "prompt"), [((), b"addd"), ((), b"bacc"), ((1.0,), b"bbca"), ((1.0,), b"addd")]
)
def test_a_greedy_answer_has_the_probability_that_generating_gave_it(
    alphas: tuple[float, ...], prompt: bytes
) -> None:
    trio = letters(CombineOptions(alphas=alphas, grid=GRID))
    prompts = turn(trio, prompt)
    options = GenerateOptions(max_tokens=12, combine=trio.options)
    generation = Generation(trio, prompts, options, None)
    steps = list(generation)
    ended = generation.finish is FinishReason.STOP
    said = steps[:-1] if ended else steps
    assert generation.changed and len(said) > 4
    judge = answers(trio, prompts)
    got = judge.score(generation.text_bytes)
    assert got.greedy and got.tokens == len(said)
    assert got.nats == pytest.approx(-sum(step.logp for step in said), rel=1e-5)
    whole = judge.score(generation.text_bytes, end=True)
    assert whole.greedy == ended and whole.nats > got.nats
    if ended:
        assert whole.nats == pytest.approx(got.nats - steps[-1].logp, rel=1e-5)
    last = b"a" if generation.text_bytes[-1:] != b"a" else b"b"
    assert not judge.score(generation.text_bytes[:-1] + last).greedy


@pytest.mark.parametrize("alphas", [(), (1.0,)])
def test_all_continuations_of_n_tokens_sum_to_one(alphas: tuple[float, ...]) -> None:
    trio = letters(CombineOptions(alphas=alphas, plausibility=1e-2))
    paths = list(itertools.product(range(len(LETTERS)), repeat=3))
    said = score_paths(trio, turn(trio, b"abccard"), paths, end=False)
    total = sum(math.exp(sum(one.logp for one in path)) for path in said)
    assert total == pytest.approx(1.0, rel=1e-4)
    (likeliest,) = [path for path in said if all(one.likeliest for one in path)]
    first = max(path[0].logp for path in said)
    assert likeliest[0].logp == pytest.approx(first)


def test_the_tree_says_what_each_path_says_by_itself() -> None:
    """Going back in the tree leaves the models where a fresh walk would put them."""
    texts = [b"abc the card", b"abc the", b"abc a", b"cardiac", b"ab", b"abc the car a"]
    for can_rewind in (True, False):
        trio = toy(can_rewind=can_rewind)
        prompts = turn(trio)
        together = answers(trio, prompts).scores(texts, end=True)
        for text, got in zip(texts, together, strict=True):
            fresh = toy()
            single = answers(fresh, turn(fresh)).score(text, end=True)
            assert got.nats == pytest.approx(single.nats, rel=1e-4)
            assert got.greedy == single.greedy


def test_a_word_of_the_prompt_that_goes_on_is_scored_given_its_beginning() -> None:
    """ "the card" + "iac" is the token "cardiac", given that a token begins with "card"."""
    trio = alone()
    prompts = turn(trio, b"the card", goes_on=True)
    got = answers(trio, prompts).score(b"iac a")
    model = FakeModel(TARGET, 1)
    tokens = text_tokenizer(model).encode(b"the cardiac a", start=True)
    place = tokens.index(TARGET.pieces().index(b"cardiac"))
    seen = [0, *tokens[:place]]
    row = softmax(model.logits(seen))
    begins = [t for t, piece in enumerate(TARGET.pieces()) if piece.startswith(b"card")]
    assert len(begins) == 2
    wanted = by_hand(seen, tokens[place:], model) + math.log(row[begins].sum())
    assert got.nats == pytest.approx(wanted, rel=1e-5)
    assert got.tokens == len(tokens) - place and got.size == 5


def test_a_text_that_goes_on_at_a_token_is_scored_behind_it() -> None:
    trio = alone()
    prompts = turn(trio, b"the card", goes_on=True)
    model = FakeModel(TARGET, 1)
    tokens = text_tokenizer(model).encode(b" a", start=False)
    wanted = by_hand(list(prompts["target"].tokens), tokens, model)
    assert answers(trio, prompts).score(b" a").nats == pytest.approx(wanted, rel=1e-5)


def test_one_word_from_the_beginning_is_scored_in_parts() -> None:
    """No token ends within the text, so the prompt's own tokens stay."""
    trio = alone()
    prompts = turn(trio, b"card", goes_on=True)
    model = FakeModel(TARGET, 1)
    tokens = text_tokenizer(model).encode(b"iac", start=False)
    wanted = by_hand(list(prompts["target"].tokens), tokens, model)
    assert answers(trio, prompts).score(b"iac").nats == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("given", [b"a", b"c", b"card"])
def test_what_may_begin_with_the_given_bytes_sums_to_one(given: bytes) -> None:
    trio = toy(CombineOptions(plausibility=1e-2))
    begins = [(t,) for t, piece in enumerate(TARGET.pieces()) if piece.startswith(given)]
    said = score_paths(trio, turn(trio), begins, end=False, given=given)
    assert sum(math.exp(path[0].logp) for path in said) == pytest.approx(1.0, rel=1e-4)
    assert sum(path[0].likeliest for path in said) == 1


def test_a_space_that_the_tokenizer_puts_in_front_is_no_part_of_the_answer() -> None:
    target = FakeModel(TARGET, 1, lead=b" ")
    trio = Ensemble(make_trio(target, FakeModel(TARGET, 2), FakeModel(TARGET, 3)).leader)
    prompts = opening(trio.models, tokenizers(trio))
    got = answers(trio, prompts).score(b"a card")
    tokens = [TARGET.pieces().index(b" a"), TARGET.byte_ids[ord(" ")]]
    tokens.append(TARGET.pieces().index(b"card"))
    assert got.nats == pytest.approx(by_hand([0], tokens, FakeModel(TARGET, 1)), rel=1e-5)
    assert got.size == 6


def test_prompt_and_common_beginnings_are_decoded_once() -> None:
    trio = toy()
    prompts = turn(trio)
    judge = answers(trio, prompts)
    judge.choose([b"abc", b"cardiac", b" the"])  # one token each: nothing behind the prompt
    assert trio.leader.decoded == len(prompts["target"].tokens)
    for cached in trio.models:
        cached.rewind(0)
        cached.decoded = 0
    judge.choose([b"abccardiac", b"abc the", b"abc a"])  # two tokens, the first in common
    assert trio.leader.decoded == len(prompts["target"].tokens) + 1
    longest = max(len(prompts[proxy.cache.role].tokens) for proxy in trio.proxies)
    assert all(proxy.cache.decoded <= longest + 6 for proxy in trio.proxies)


def test_lengths_count_as_asked() -> None:
    trio = toy()
    judge = answers(trio, turn(trio))
    choices = [b"xyz", b"cardiac the card a ab abc", b"yxz the"]
    scores = judge.scores(choices)
    wanted = {
        Choosing.LIKELIHOOD: [score.nats for score in scores],
        Choosing.PER_BYTE: [score.nats / score.size for score in scores],
        Choosing.PER_TOKEN: [score.nats / score.tokens for score in scores],
    }
    found = set()
    for how, rates in wanted.items():
        got = judge.choose(choices, how)
        assert got.index == int(np.argmin(rates))
        assert got.logps == pytest.approx([-score.nats for score in scores])
        found.add(got.index)
    assert len(found) > 1


def test_a_choice_that_another_begins_with_is_weighed_with_its_end() -> None:
    """Without it "a" could not be less likely than "ab"."""
    choices, found = [b"a", b"ab", b"c"], set()
    for prompt in (b"abc", b"card", b"dab", b"rrr", b"cab", b"bad", b"acc"):
        trio = letters(CombineOptions(alphas=(1.0,)))
        judge = answers(trio, turn(trio, prompt))
        got, whole = judge.choose(choices), judge.scores(choices, end=True)
        assert got.logps == pytest.approx([-score.nats for score in whole])
        assert got.index == int(np.argmax(got.logps))
        found.add(got.index)
        bare = judge.choose([b"ab", b"c", b"da"])
        assert bare.scores == judge.scores([b"ab", b"c", b"da"])
    assert 1 in found


def test_what_does_not_fit_is_refused_with_counts_and_nothing_is_decoded() -> None:
    trio = toy(limit=40)
    judge = answers(trio, turn(trio))
    with pytest.raises(ContextOverflow, match=r"target \d+, expert \d+, base \d+ .*holds 40"):
        judge.scores([b"abc", b"zyx" * 40])
    assert [each.decoded for each in trio.models] == [0, 0, 0]


def test_a_full_context_is_used_to_its_last_token() -> None:
    trio = alone(limit=20)
    prompts = turn(trio, b"abc")
    room = 20 - len(prompts["target"].tokens)
    assert answers(trio, prompts).score(b"x" * room, end=True).tokens == room
    with pytest.raises(ContextOverflow):
        answers(trio, prompts).score(b"x" * (room + 1))


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
    trio = toy()
    for how in Choosing:
        with pytest.raises(UsageError, match=said) as error:
            answers(trio, turn(trio)).choose(choices, how)
        assert "zyx" not in str(error.value)


def test_an_answer_that_cannot_be_spelt_is_refused_without_its_text() -> None:
    trio = letters()

    def known(text: bytes, *, special: bool) -> list[int]:
        return [LETTERS.byte_ids[byte] for byte in text if byte in LETTERS.byte_ids]

    trio.leader.model.tokenize = known  # type: ignore[method-assign]
    for how in Choosing:
        with pytest.raises(UnspellableText, match="no token for the byte 0x7a") as error:
            answers(trio, turn(trio, b"abc")).choose([b"zyx", b"a"], how)
        assert "zyx" not in str(error.value)


def test_scoring_stops_when_it_is_told_to() -> None:
    trio = toy()
    judge = Answers(trio, tokenizers(trio), turn(trio), cancel=lambda: True)
    with pytest.raises(Cancelled):
        judge.score(b"abc")
