"""Target and expert without a base, selective ensembling, and the authors' settings."""

from __future__ import annotations

import numpy as np
import pytest

from capt_local.decoding.ensemble import Ensemble, read_by
from capt_local.decoding.loop import Generation
from capt_local.decoding.options import CombineOptions, GenerateOptions, Method
from capt_local.errors import UsageError
from capt_local.prompting.messages import Message
from tests.decoding.trios import PROXY, TARGET, assembly, turn
from tests.fakes import FakeModel, softmax

PAIR = {"target": FakeModel(TARGET, 1), "expert": FakeModel(PROXY, 2)}


def built(method: Method, options: CombineOptions | None = None, **models: FakeModel) -> Ensemble:
    """Without a base among the models: nothing of these methods needs one."""
    how = GenerateOptions(method=method, combine=options or CombineOptions())
    return assembly({**PAIR, **models}).build(how, scoring=True)


def total(ensemble: Ensemble) -> float:
    here = ensemble.distribution()
    tokens = range(len(ensemble.leader.model.vocabulary))
    return float(sum(np.exp(here.token_logp(token)) for token in tokens))


def test_a_duo_without_the_expert_is_the_target_and_the_other_way_round() -> None:
    same = FakeModel(TARGET, 7)
    for alpha, model in ((0.0, PAIR["target"]), (1.0, same)):
        options = CombineOptions(alphas=(alpha,), plausibility=0.0)
        duo = built(Method.DUO, options, expert=same)
        duo.start(turn(duo))
        row = softmax(model.logits(duo.tokens))
        here = duo.distribution()
        found = np.exp([here.token_logp(token) for token in range(2, len(row))])
        np.testing.assert_allclose(found, row[2:], rtol=1e-3, atol=2e-6)


def test_a_duo_mixes_by_the_evidence_and_runs_no_base() -> None:
    duo = built(Method.DUO)
    assert [each.role for each in duo.models] == ["target", "expert"] and duo.mixes
    prompts = turn(duo)
    generation = Generation(duo, prompts, GenerateOptions(method=Method.DUO, max_tokens=5, top=2))
    steps = list(generation)
    assert generation.evidence_tokens > 0
    assert all(step.expert_logp is not None and step.base_logp is None for step in steps)
    assert total(duo) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    "options", [CombineOptions(powers=(1.0, 1.0, 0.5)), CombineOptions(alphas=(1.0, 0.5))]
)
def test_weights_of_a_base_have_no_place_in_a_duo(options: CombineOptions) -> None:
    with pytest.raises(UsageError, match=r"--(weights|alpha) takes"):
        built(Method.DUO, options)


def test_safe_leaves_the_target_alone_where_models_agree() -> None:
    ensemble = built(Method.SAFE, expert=FakeModel(TARGET, 1))  # the same model
    ensemble.start(turn(ensemble))
    for _ in range(6):
        row = softmax(PAIR["target"].logits(ensemble.tokens))
        here = ensemble.distribution()
        token = int(row.argmax())
        assert here.token_logp(token) == pytest.approx(np.log(row[token]), rel=1e-4)
        ensemble.advance(token)


def test_safe_ensembles_some_positions_and_is_unite_there() -> None:
    safe, unite = built(Method.SAFE), built(Method.UNITE)
    for each in (safe, unite):
        each.start(turn(each, b"abc the card abc a"))
    kinds = set()
    for token in [TARGET.byte_ids[byte] for byte in b"cab dac abc"]:
        row = PAIR["target"].logits(safe.tokens)
        alone = np.log(softmax(row)[token])
        found = [each.distribution().token_logp(token) for each in (safe, unite)]
        assert found[0] == pytest.approx(alone, rel=1e-4) or found[0] == found[1]
        kinds.add("alone" if found[0] == pytest.approx(alone, rel=1e-4) else "unite")
        assert total(safe) == pytest.approx(1.0, rel=1e-4)
        for each in (safe, unite):
            each.advance(token)
    assert kinds == {"alone", "unite"}


def test_a_boundary_inside_a_piece_of_the_expert_is_left_alone() -> None:
    """ "ab" + "c" is the piece "abc" of the expert: its token "ab" does not stay."""
    safe = built(Method.SAFE)
    safe.start(turn(safe, b"card"))
    (expert,) = safe.proxies
    for byte in b"xca":
        safe.advance(TARGET.byte_ids[byte])
    assert not expert.keeps_tokens(b"r") and expert.keeps_tokens(b"\n\n")


def test_proxies_of_the_published_prompts_read_the_raw_text() -> None:
    asked = [Message("system", "Be short."), Message("user", "Why?")]
    raw = Method.CAPT_PAPER_RAW
    assert read_by(raw, "target", asked, raw=False) == (asked, False)
    assert read_by(raw, "expert", asked, raw=False) == ("Be short.\n\nWhy?", True)
    assert read_by(Method.CAPT_PAPER, "expert", asked, raw=False) == (asked, False)
