"""Thoughts apart from answers: however tokens divide the text, and who has a say in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, FinishReason, GenerateOptions, Speed
from capt_local.decoding.reasoning import AnswerStream, ReasoningParser, Section
from capt_local.prompting.build import find_markers
from capt_local.prompting.messages import Prompt, ReasoningMarkers, Segment
from capt_local.prompting.template import ChatTemplate
from capt_local.tokenization import TokenKind, Vocabulary
from tests.decoding.trios import PROXY, make_trio
from tests.fakes import FakeModel, make_vocabulary, text_tokenizer

THINK = find_markers(make_vocabulary([]), ChatTemplate("{{ '<think>' }} {{ '</think>' }}"))
HARMONY = find_markers(make_vocabulary([]), ChatTemplate("<|channel|> <|message|>"))
ANSWER = find_markers(make_vocabulary([]), ChatTemplate("<think> </think> <response> </response>"))
assert THINK is not None and ANSWER is not None and HARMONY is not None
ANALYSIS = b"<|channel|>analysis<|message|>"
NEXT = b"<|end|><|start|>assistant"
FINAL = b"<|channel|>final<|message|>"


def divided(thoughts: ReasoningParser, pieces: Sequence[bytes]) -> tuple[bytes, bytes]:
    """(thoughts, answer) of a stream."""
    found = [b"", b""]
    for part in [thoughts.feed(piece, is_text=True) for piece in pieces] + [thoughts.flush()]:
        found[not part.reasoning] += part.text
    return found[0], found[1]


@pytest.mark.parametrize(
    ("markers", "opened", "text", "wanted"),
    [
        (THINK, False, b"<think>\nhm\n</think>\n\nYes.", (b"hm\n", b"Yes.")),
        (THINK, True, b"\nhm</think>Yes.\n", (b"hm", b"Yes.\n")),
        (THINK, False, b"<think></think>\n\nYes.", (b"", b"Yes.")),
        (THINK, False, b"Yes. <think>no</think>", (b"", b"Yes. <think>no</think>")),
        (THINK, False, b"<thin", (b"", b"<thin")),
        (THINK, False, b"<thinner", (b"", b"<thinner")),
        (THINK, False, b"\nYes", (b"", b"\nYes")),
        (THINK, False, b"<think>a < b </thin", (b"a < b </thin", b"")),
        (THINK, False, b"<think>a<</think>b", (b"a<", b"b")),
        (THINK, False, b"", (b"", b"")),
        (THINK, False, b"\n<think>hm</think>\nYes.", (b"hm", b"Yes.")),
        (THINK, False, b" Yes", (b"", b" Yes")),
        (ANSWER, False, b"<think>hm</think>\n<response>Yes.", (b"hm", b"Yes.")),
        (ANSWER, False, b"<response>\nYes.", (b"", b"Yes.")),
        (HARMONY, False, ANALYSIS + b"hm" + NEXT + FINAL + b"Yes.", (b"hm", b"Yes.")),
        (HARMONY, False, FINAL + b"Yes.", (b"", b"Yes.")),
        (HARMONY, False, ANALYSIS + b"a" + NEXT + ANALYSIS + b"b" + NEXT + FINAL + b"c",
         (b"ab", b"c")),
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 120), max_size=12))
def test_markers_are_found_wherever_the_text_is_cut(
    markers: object, opened: bool, text: bytes, wanted: tuple[bytes, bytes], cuts: list[int]
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert divided(ReasoningParser(markers, opened=opened), pieces) == wanted  # type: ignore[arg-type]


def vocabulary() -> Vocabulary:
    plain = make_vocabulary(["hm", "Yes", "\n\n", " card"])
    pieces = [*plain.pieces(), b"<think>", b"</think>"]
    kinds = [*plain.kinds.tolist(), TokenKind.USER_DEFINED, TokenKind.CONTROL]
    return Vocabulary(pieces, kinds, end_ids=[1], bos=0, add_bos=True)


VOCABULARY = vocabulary()
IDS = {VOCABULARY.piece(token): token for token in range(len(VOCABULARY))}
SAID = [b"<think>", b"hm", b" card", b"</think>", b"\n\n", b"Yes", b"!", b"<end>"]


class Speaker(FakeModel):
    """Says some pieces and nothing else, wherever its prompt ends."""

    def __init__(self, said: Sequence[bytes], prompt: int) -> None:
        super().__init__(VOCABULARY, 1)
        self._said, self._prompt = [IDS[piece] for piece in said], prompt

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        row = np.zeros(len(VOCABULARY), np.float32)
        place = len(tokens) - self._prompt
        if 0 <= place < len(self._said):
            row[self._said[place]] = 40.0
        return row


def answer(
    said: Sequence[bytes], options: GenerateOptions, *, opened: bool = False
) -> tuple[Generation, list, Ensemble]:
    tokens = [IDS[b"<s>"]] + ([IDS[b"<think>"]] if opened else [])
    user = Segment(tuple(text_tokenizer(FakeModel(VOCABULARY, 1)).encode(b"ab", start=True)), b"ab")
    trio = make_trio(
        Speaker(said, len(tokens) + len(user.tokens)), FakeModel(PROXY, 2), FakeModel(PROXY, 3),
        CombineOptions(alphas=(1.0,)),
    )  # fmt: skip
    markers = find_markers(VOCABULARY, ChatTemplate(""))
    prompts = {"target": Prompt((user, Segment(tuple(tokens))), markers=markers)}
    for proxy in trio.proxies:
        read = text_tokenizer(proxy.cache.model).encode(b"ab", start=True)  # type: ignore
        prompts[proxy.cache.role] = Prompt((Segment(tuple(read), b"ab"), Segment((0,))))
    generation = Generation(trio, prompts, options, None)
    return generation, list(generation), trio


def prompt_for_role(trio: Ensemble) -> bytes:
    expert = trio.proxies[0]
    return expert.cache.model.vocabulary.text(expert.tokens[1:]).removeprefix(b"b")


@pytest.mark.parametrize("opened", [True, False])
def test_the_target_thinks_alone_and_the_expert_reads_the_answer(opened: bool) -> None:
    said = SAID[1:] if opened else SAID
    generation, steps, trio = answer(said, GenerateOptions(top=2), opened=opened)
    assert (generation.thoughts_bytes, generation.text_bytes) == (b"hm card", b"Yes!")
    assert generation.finish is FinishReason.STOP
    inside = [step for step in steps if step.thought]
    assert [VOCABULARY.piece(step.token) for step in inside] == said[:-3]
    assert all(step.contrast == 0.0 for step in inside[not opened :])
    assert all(step.expert_top == () for step in inside[not opened :])
    assert [step.contrast != 0.0 for step in steps if not step.thought][:2] == [True, True]
    # Everything that expert and base have seen is the prompt and the answer.
    assert prompt_for_role(trio).endswith(b"Yes!") and b"hm" not in prompt_for_role(trio)


def test_the_expert_may_have_a_say_in_thoughts() -> None:
    options = GenerateOptions(expert_in_thoughts=True, speed=Speed.EXACT_STEPS)
    generation, steps, trio = answer(SAID, options)
    assert (generation.thoughts_bytes, generation.text_bytes) == (b"hm card", b"Yes!")
    assert steps[1].contrast != 0.0
    assert b"hm card" in prompt_for_role(trio)


def test_markers_that_are_text_are_found_as_well() -> None:
    said = [bytes([byte]) for byte in b"<think>a</think>b"] + [b"<end>"]
    generation, _, _ = answer(said, GenerateOptions())
    assert (generation.thoughts_bytes, generation.text_bytes) == (b"a", b"b")


def test_before_a_form_only_the_template_opens_thoughts() -> None:
    markers = find_markers(VOCABULARY, ChatTemplate(""))
    for token, opened in ((IDS[b"<think>"], True), (IDS[b"</think>"], False), (0, False)):
        prompt = Prompt((Segment((0,), b"x"), Segment((token,))), markers=markers)
        free, formed = (
            ReasoningParser.for_prompt(prompt, VOCABULARY, structured=each)
            for each in (False, True)
        )
        assert free.section is (Section.REASONING if opened else Section.BEGINNING)
        assert formed.section is (Section.REASONING if opened else Section.ANSWER)


ENDS = [b"<turn|>", b"<|turn>", b"<|fim\x1b|>", b"<|channel|>", b"<|message|>", b"<|end|>",
        b"<|start|>", b"<think>", b"</think>", b"<response>", b"</response>"]  # fmt: skip
CHANNEL = [b"<|channel|>", b"analysis", b"<|message|>", b"hm", b"<|end|>"]
MESSAGE = [b"<|start|>", b"assistant", b"<|channel|>", b"final", b"<|message|>", b"Yes"]
RESPONSE = [b"<think>", b"hm", b"</think>", b"\n", b"<response>", b"Yes"]


@pytest.mark.parametrize(
    ("said", "markers", "ends", "wanted", "count", "notice"),
    [
        # What the template writes behind an answer ends it; any other control token too, with a
        # notice; in channels the end of a message ends the answer alone.
        ([b"Yes", b"<turn|>", b"<|turn>", b"hm"], None, b"<turn|>", (b"", b"Yes"), 1, ""),
        ([b"Yes", b"<|fim\x1b|>", b"hm"], None, b"", (b"", b"Yes"), 1, "<|fim?|>"),
        ([b"Yes", b"<|fim\x1b|>", b"hm"], THINK, b"", (b"", b"Yes"), 1, "<|fim?|>"),
        ([*CHANNEL, *MESSAGE, b"<|end|>", b"hm"], HARMONY, b"<|end|>", (b"hm", b"Yes"), 11, ""),
        # A message of somebody else behind the reasoning ends the output.
        ([*CHANNEL, b"<|start|>", b"<|message|>", b"hm"], HARMONY, b"<|end|>", (b"hm", b""), 6,
         "no answer followed"),
        # What closes an answer ends it, as a token and as text.
        ([*RESPONSE, b"</response>", b"hm"], ANSWER, b"", (b"hm", b"Yes"), 6, ""),
        ([bytes([byte]) for byte in b"<response>Yes</response>hm"], ANSWER, b"", (b"", b"Yes"), 24,
         ""),
        # A marker of reasoning inside an answer is left out.
        ([b"Yes", b"</think>", b"hm"], THINK, b"", (b"", b"Yeshm"), 3, "</think>"),
    ],
)  # fmt: skip
def test_what_ends_an_answer(
    said: Sequence[bytes],
    markers: ReasoningMarkers | None,
    ends: bytes,
    wanted: tuple[bytes, bytes],
    count: int,
    notice: str,
) -> None:
    plain = make_vocabulary(["Yes", "hm", "analysis", "final", "assistant"])
    kinds = [*plain.kinds.tolist(), *[TokenKind.CONTROL] * len(ENDS)]
    vocabulary = Vocabulary([*plain.pieces(), *ENDS], kinds, end_ids=[1])
    ids = {vocabulary.piece(token): token for token in range(len(vocabulary))}
    parser = None if markers is None else ReasoningParser(markers, opened=False)
    stream = AnswerStream(vocabulary, (), parser, [ids[ends]] if ends else [])
    found, read = [b"", b""], 0
    for token in map(ids.__getitem__, said):
        if stream.ends(token) or stream.stopped:
            break
        part = stream.feed(token, vocabulary.text((token,)))
        found[not part.reasoning] += part.text
        read += 1
    found[1] += stream.rest()
    assert (tuple(found), read) == (wanted, count)
    assert [notice in each for each in stream.notices] == [True] * bool(notice)


def test_proxies_of_the_same_vocabulary_read_what_might_have_begun_a_marker() -> None:
    """They follow tokens, not bytes."""
    for said, wanted in (
        ([b"\n\n", b"<", b"t", b"Yes", b"!"], [b"\n\n", b"<", b"t", b"Yes"]),
        ([b"<think>", b"hm", b"</think>", b"\n\n", b"Yes", b"!"], [b"Yes"]),
        ([b"<think>", b"hm", b"</think>", b" ", b"\n\n", b"Yes", b"!"], [b" ", b"\n\n", b"Yes"]),
    ):
        vocabularies = [VOCABULARY] * 2
        user = Segment(tuple(text_tokenizer(FakeModel(VOCABULARY, 1)).encode(b"ab", start=True)))
        models = [FakeModel(each, seed) for seed, each in enumerate(vocabularies, 2)]
        trio = make_trio(Speaker(said, len(user.tokens)), *models, CombineOptions(alphas=(1.0,)))
        assert all(proxy.alignment.shares_vocabulary for proxy in trio.proxies)
        prompts = {
            role: Prompt(
                (Segment(user.tokens),), markers=find_markers(VOCABULARY, ChatTemplate(""))
            )
            for role in ("target", "expert", "base")
        }
        options = GenerateOptions(max_tokens=len(said), speed=Speed.EXACT_STEPS)
        list(Generation(trio, prompts, options))
        for proxy in trio.proxies:
            read = proxy.tokens[len(user.tokens) : len(user.tokens) + len(wanted)]
            assert [VOCABULARY.piece(token) for token in read] == wanted
