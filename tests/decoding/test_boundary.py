"""Where an answer begins in tokens: no byte is lost or scored twice, wherever a text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capt_local.decoding.scoring import place
from capt_local.prompting.build import build_raw
from tests.decoding.trios import PROXY, TARGET
from tests.fakes import FakeModel, text_tokenizer

TEXT = st.text(alphabet="abcdiar the\né", min_size=1, max_size=20)


@given(TEXT, TEXT, st.sampled_from([b"", b" "]), st.sampled_from([b"", b" "]))
def test_prompt_and_answer_are_the_canonical_tokens_of_the_whole(
    text: str, answer: str, lead: bytes, other: bytes
) -> None:
    tokenizers = {
        "target": text_tokenizer(FakeModel(TARGET, 1, lead=lead)),
        "expert": text_tokenizer(FakeModel(PROXY, 2, lead=other)),
    }
    before, after = text.encode(), answer.encode()
    prompts = {role: build_raw(before, each) for role, each in tokenizers.items()}
    placed = place("target", prompts, tokenizers, after)
    own = placed.prompts["target"]
    said = TARGET.text(placed.tokens)
    assert TARGET.text(own.tokens) + said == lead + before + after
    assert said == placed.given + after and before.endswith(placed.given)
    whole = tokenizers["target"].encode(before + after, start=True)
    if any(TARGET.text(whole[:n]) == lead + before for n in range(1, len(whole))):
        assert placed.given == b""
    if placed.given:  # one token straddles the boundary
        assert len(TARGET.piece(placed.tokens[0])) > len(placed.given)
    shorter = before[: len(before) - len(placed.given)]
    assert own.segments[-1].text == shorter == placed.prompts["expert"].segments[-1].text
    if list(own.tokens) != list(prompts["target"].tokens):
        assert [*own.tokens, *placed.tokens] == [0, *whole]
