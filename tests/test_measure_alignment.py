"""The measurements of alignment and weights: on short texts with the demo trio."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from capt_local import GenerateOptions, LoadOptions, Method, Runtime
from capt_local.decoding.options import GRID, AlignOptions, CombineOptions
from capt_local.errors import UsageError
from scripts.alignment.beam import Limits
from scripts.alignment.branching import Branching
from scripts.alignment.constants import Varied
from scripts.alignment.exact import EVENTS, PREFIXES, compare
from scripts.alignment.loss import Loss, own_bits
from scripts.alignment.pairs import REFUSED, Pairs
from scripts.alignment.positions import counted
from scripts.alignment.table import Table, told
from scripts.alignment.walk import Models
from scripts.alignment.weights import Evidence, Gains, Setting, Study, mixed_nats
from scripts.measure_alignment import main
from tests.real_vocabularies import open_vocabulary

NOTE = b"The patient is a 61-year-old woman who presents with dyspnea. She was given 40 mg of"
DEFAULT = CombineOptions()
# The same rows read in other batches differ in the fifth digit (KV cache in half precision).
CLOSE = 1e-4


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    with Models("demo") as opened:
        yield opened


@pytest.fixture(scope="module")
def study(models: Models) -> Study:
    """The default, without healing, and the likeliest 20, over two short texts."""
    alignments = {name: models.alignment(name) for name in ("projection", "without healing")}
    settings = [Setting(name, DEFAULT.plausibility) for name in alignments]
    made = Study(alignments, [*settings, Setting("projection", 0.0, 20)], [(1.0, 0.5, 0.5)])
    for text in (NOTE, NOTE[:40]):
        made.add(models, text)
    return made


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime.open("demo", load=LoadOptions(threads=1)) as opened:
        yield opened


def bits(runtime: Runtime, options: GenerateOptions) -> float:
    """What `capt-local score` says about the two texts."""
    scores = [runtime.score(text, options) for text in (NOTE, NOTE[:40])]
    return sum(one.nats for one in scores) / sum(one.size for one in scores) / math.log(2)


def test_one_walk_gives_what_score_gives(study: Study, runtime: Runtime) -> None:
    """Mixed and fixed, with and without healing: the walk is the decoder's own."""
    gains = study.gains[Setting("projection", DEFAULT.plausibility)]
    assert gains.mixed(GRID, Evidence()) == pytest.approx(bits(runtime, GenerateOptions()), CLOSE)
    fixed = CombineOptions(powers=(0.25, 1.0, 0.25))
    assert gains.fixed((0.25, 1.0, 0.25)) == pytest.approx(
        bits(runtime, GenerateOptions(combine=fixed)), CLOSE
    )
    assert gains.fixed((1.0, 0.0, 0.0)) == pytest.approx(
        bits(runtime, GenerateOptions(method=Method.TARGET)), CLOSE
    )
    without = study.gains[Setting("without healing", DEFAULT.plausibility)]
    options = GenerateOptions(align=AlignOptions(healing=False))
    assert without.mixed(GRID, Evidence()) == pytest.approx(bits(runtime, options), CLOSE)
    assert without.mixed(GRID, Evidence()) > gains.mixed(GRID, Evidence())


def test_few_candidates_leave_the_target_alone(study: Study) -> None:
    """The target is the same under every limit; the help is not."""
    all_of_them = study.gains[Setting("projection", DEFAULT.plausibility)]
    few = study.gains[Setting("projection", 0.0, 20)]
    assert few.fixed((1.0, 0.0, 0.0)) == pytest.approx(all_of_them.fixed((1.0, 0.0, 0.0)))
    assert few.fixed((1.0, 0.5, 0.5)) > all_of_them.fixed((1.0, 0.5, 0.5))


def test_mixtures_follow_the_evidence() -> None:
    """Two members worked by hand: equal weights first, then by what each gave."""
    gains = np.log([[0.5, 0.1], [0.4, 0.2]])
    first = 0.3
    assert mixed_nats(gains, Evidence(1.0)) == pytest.approx(
        -math.log(first) - math.log((0.5 * 0.4 + 0.1 * 0.2) / 0.6)
    )
    assert mixed_nats(gains, Evidence(1.0, frozen=0)) == pytest.approx(
        -math.log(first) - math.log(0.3)
    )
    # The third token after evidence of which the first half is forgotten.
    again = np.vstack((gains[:1], [[0.0, 0.0]], gains[1:]))
    weights = np.exp(0.5 * gains[0])
    third = float(weights @ np.exp(gains[1]) / weights.sum())
    assert mixed_nats(again, Evidence(0.5)) == pytest.approx(-math.log(first) - math.log(third))


def test_the_best_fixed_weights_are_found() -> None:
    gains = Gains(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), [np.log([[0.25, 0.5]])], [1])
    assert gains.best_fixed() == ((0.0, 1.0, 0.0), pytest.approx(1.0))


def test_a_varied_projection_with_the_defaults_is_the_projection(models: Models) -> None:
    vocabulary = models.tokenizers["expert"].vocabulary
    alignments = {
        "projection": models.alignment("projection"),
        "same": Varied(vocabulary, models.events, 0.003, 3),
        "even": Varied(vocabulary, models.events, 1.0, 3),
        "unhealed": Varied(vocabulary, models.events, 0.003, 0),
    }
    made = Study(alignments, [Setting(name, 1e-5) for name in alignments], ())
    made.add(models, NOTE)
    found = {setting.alignment: gains.texts[0] for setting, gains in made.gains.items()}
    assert np.array_equal(found["same"], found["projection"])
    assert not np.allclose(found["even"], found["projection"])
    assert not np.allclose(found["unhealed"], found["projection"])


def test_pairs_are_those_of_the_tokenizer(models: Models) -> None:
    tokenizer = models.tokenizers["target"]
    pairs = Pairs(tokenizer)
    tokens = tokenizer.encode(NOTE, start=True)
    assert all(pairs.stand(a, b) for a, b in pairwise(tokens))
    letters = [tokenizer.vocabulary.byte_ids[byte] for byte in b"th"]
    assert not pairs.stand(*letters)
    factors = pairs.factors(letters[0], letters[1:] * 2, np.array([True, False]))
    assert factors.tolist() == [REFUSED, 1.0]
    assert pairs.factors(None, letters, np.array([True, True])).tolist() == [1.0, 1.0]


def test_reading_on_moves_mass_and_makes_none(models: Models) -> None:
    """An open piece's mass goes to tokens that begin with it; where nothing is open, none moves."""
    vocabulary = models.tokenizers["expert"].vocabulary
    made = Branching(vocabulary, models.events, 4)
    plain = models.alignment("projection")
    tokens = np.flatnonzero(models.tokenizers["target"].vocabulary.is_text).astype(np.int32)
    prior = np.full(len(tokens), 1.0 / len(tokens))
    for number, place in enumerate(models.walk(NOTE[:30])):
        cached, (view, _) = models.cached["expert"], place.views
        rows: list[list[int]] = []

        def read(pieces: list[int], cached=cached, rows=rows) -> list[np.ndarray]:
            rows.append(pieces)
            logits = cached.branch([(piece,) for piece in pieces])
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            return list(shares / shares.sum(axis=1, keepdims=True))

        made.read = read
        view = view._replace(back=view.back[: made.depth])
        before = plain.probability(plain.ask(tokens, prior), view)
        after = made.probability(made.ask(tokens, prior), view)
        assert (after >= 0.0).all() and after.sum() <= before.sum() + 1e-6
        assert after.sum() > 0.95 * before.sum()
        assert not np.allclose(after, before) or not rows
        if number == 3:
            break
    assert made.positions > 0


def test_a_beam_tells_the_same_step_by_step_and_as_a_whole(models: Models) -> None:
    table = own_bits(models, [NOTE], Limits())[0]
    canonical, telescoped, whole = (row[1] for row in table.rows)
    assert whole <= canonical * 1.0001 and telescoped <= canonical * 1.005
    assert telescoped == pytest.approx(whole, rel=0.02)


def test_exact_ways_beside_the_cheap_ones(models: Models) -> None:
    (table,) = compare(models, [NOTE[:24]], Limits(), 1e-3)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert table.rows[0][1:3] == (0.0, 0.0)
    assert rows[PREFIXES]["other choice, mixture"] == 0.0
    assert rows["projection"]["positions a step and proxy"] < 2
    assert rows[EVENTS]["positions a step and proxy"] > 2
    assert all(float(row[1]) > 0.0 for row in table.rows[1:])


def test_loss_tells_every_way(models: Models) -> None:
    loss = Loss(models)
    loss.add(NOTE[:24])
    (table,) = loss.tables()
    found = {row[0]: row[1:] for row in table.rows}
    assert found["projection"][0] == pytest.approx(found["projection"][1], rel=0.05)
    assert found["projection"] != found["projection, pairs"]
    assert loss.refused == 0 and loss.pairs.asked > 10


def test_positions_are_the_proxys_tokens_and_those_decoded_again(models: Models) -> None:
    """Summed over a text: its canonical tokens, and once more each one that was taken back."""
    target, proxy = models.tokenizers["target"], models.tokenizers["expert"]
    steps, new, rolled, back, most = counted(target, proxy, [NOTE, NOTE])
    assert steps == 2 * len(target.encode(NOTE, start=True))
    # The space in front of the text stands there before the first step.
    before = len(proxy.lead_tokens)
    tokens = 2 * (len(proxy.encode(NOTE, start=True)) - before)
    assert steps * (new - back) == pytest.approx(tokens)
    assert 0 < rolled < 0.5 and most > 1


def test_tables_are_markdown_or_json() -> None:
    table = Table("What", ("a", "b"), (("x", 0.5), ("y", 1234.5)))
    assert told([table], as_json=False).splitlines()[2:] == [
        "| a | b |",
        "| --- | --- |",
        "| x | 0.5000 |",
        "| y | 1234.5 |",
    ]
    assert json.loads(told([table], as_json=True))[0]["rows"] == [["x", 0.5], ["y", 1234.5]]
    with pytest.raises(ValueError, match="headings"):
        Table("What", ("a",), (("x", 0.5),))


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": NOTE.decode()}) + "\n" for _ in range(2)))
    open_vocabulary("qwen2")
    assert main(["positions", str(path), "--skip", "1", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert all(row[2] >= 1.0 for row in table["rows"]) and len(table["rows"]) == 4
    assert main(["weights", str(path), "--limit", "1", "--max-bytes", "20"]) == 0
    assert "| (0.25, 1, 0.25) |" in capsys.readouterr().out
    assert main(["weights", str(path), "--skip", "2"]) == 2
    assert main(["weights", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("--skip leaves no text.\n")
    assert main(["loss", str(path), "--max-bytes", "20", "--bundle", "none"]) == 2


def test_a_text_longer_than_the_context_is_refused(models: Models) -> None:
    with pytest.raises(UsageError, match="--max-bytes"):
        next(models.walk(b"word " * 2000))
