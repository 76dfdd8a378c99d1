"""A distribution depends on the text alone, not on which rows were read on the way to it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.alignment import Align
from capt_local.decoding.options import AlignOptions, CombineOptions, GenerateOptions
from capt_local.decoding.prefill import prefill
from capt_local.decoding.trio import Trio
from tests.decoding.trios import PROXY, TARGET, assembly, turn
from tests.fakes import FakeModel

TEXTS = st.text(alphabet="abcdiar the", min_size=1, max_size=16).map(str.encode)
# Text tokens, words more often than bytes.
TOKENS = st.one_of(
    st.integers(258, len(TARGET) - 1), st.sampled_from([TARGET.byte_ids[b] for b in b"abcdiart "])
)
KINDS = st.sampled_from(list(Align))


def fresh(kind: Align, **how: object) -> Trio:
    made = {
        role: FakeModel(vocabulary, seed, **how)  # type: ignore[arg-type]
        for seed, (role, vocabulary) in enumerate(
            {"target": TARGET, "expert": PROXY, "base": PROXY}.items(), 1
        )
    }
    options = GenerateOptions(align=AlignOptions(kind), combine=CombineOptions())
    return assembly(made).trio(options)


@settings(max_examples=80)
@given(
    KINDS,
    TEXTS,
    TEXTS,
    st.lists(st.tuples(TOKENS, st.booleans()), max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([4, 7, 64]),
)
def test_whichever_rows_were_cached(
    kind: Align,
    before: bytes,
    prompt: bytes,
    answer: list[tuple[int, bool]],
    goes_on: bool,
    can_rewind: bool,
    max_rows: int,
) -> None:
    """After another text, with or without evidence from the prompt, asked at some places or at
    all, by models that can take tokens back or not: bit by bit what a fresh trio says."""
    used, other = fresh(kind, can_rewind=can_rewind, max_rows=max_rows), fresh(kind, max_rows=64)
    used.start(turn(used, before))
    used.distribution()
    prompts = turn(used, prompt, goes_on=goes_on)
    used.start(prompts)
    evidence = prefill(used, prompts)
    assert evidence is not None
    for token, asked in answer:
        used.advance(token)
        if asked:
            used.distribution()
    other.start(turn(other, prompt, goes_on=goes_on))
    for token, _ in answer:
        other.advance(token)
    other.observe(evidence.weights)
    here, wanted = used.distribution(), other.distribution()
    np.testing.assert_array_equal(here.candidates.tokens, wanted.candidates.tokens)
    np.testing.assert_array_equal(here.said, wanted.said)
    np.testing.assert_array_equal(here.logp, wanted.logp)
