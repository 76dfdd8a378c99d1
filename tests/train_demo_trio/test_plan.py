"""The stages, their budget, the packing of rows, and the twenty prompts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.train_demo_trio import schedule
from scripts.train_demo_trio.batches import PROMPT_WEIGHT, Packer, Stream, joined
from scripts.train_demo_trio.clinical_turns import turns_of
from scripts.train_demo_trio.corpus import SOURCES, Document
from scripts.train_demo_trio.shapes import Shape
from scripts.train_demo_trio.stages import LANES, PRESETS, STAGES, STREAMS


def stream(lengths: list[int], first: int, *, whole: bool) -> Stream:
    """Units whose tokens tell stream and unit."""
    ids = [first + i for i, length in enumerate(lengths) for _ in range(length)]
    starts = np.cumsum([0, *lengths])
    return Stream(np.array(ids, np.uint16), np.ones(len(ids), np.float16), starts, whole)


def test_sizes_are_those_that_were_asked_for() -> None:
    demo = PRESETS["demo"].shapes
    assert 25e6 <= demo["target"].parameters <= 40e6
    assert 8e6 <= demo["proxy"].parameters <= 12e6
    # Six and a half bits a weight, and what the vocabularies take.
    whole = demo["target"].parameters + 2 * demo["proxy"].parameters
    assert whole * 6.5625 / 8 + 1e6 < 40e6
    for shape in demo.values():  # so that K-quants fit everywhere
        assert not any(n % 256 for n in (shape.width, shape.hidden, shape.heads * shape.head_dim))


def test_parameters_are_those_of_the_model() -> None:
    shape = Shape(96, 64, 2, 2, 1, 160, 32)
    block = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 160 + 2 * 64
    assert shape.parameters == 96 * 64 + 2 * block + 64
    with pytest.raises(ValueError, match="kv_heads"):
        Shape(96, 64, 2, 3, 2, 160, 32)
    with pytest.raises(ValueError, match="multiples of 32"):
        Shape(96, 60, 2, 2, 1, 160, 32)


def test_every_stage_has_a_parent_before_it_and_sources_that_exist() -> None:
    for lane in LANES:
        done: set[str] = set()
        for name in lane:
            stage = STAGES[name]
            assert not stage.start_from or stage.start_from in done
            assert not stage.start_from or STAGES[stage.start_from].role == stage.role
            assert set(stage.sources) <= set(SOURCES) and set(stage.epochs) <= set(
                STREAMS[stage.role]
            )
            done.add(name)
    assert sorted(name for lane in LANES for name in lane) == sorted(STAGES)


def test_base_and_target_never_see_clinical_notes() -> None:
    notes = {"medquad", "mtsamples-noleak", "e3c-en-ccby", "mts-dialog-train", "aci-bench-train"}
    for name in ("base", "base-tune", "target-pretrain", "target-tune"):
        assert not notes & set(STAGES[name].sources)


def test_costs_follow_from_epochs() -> None:
    preset, stage = PRESETS["demo"], STAGES["base"]
    counts = {"openstax-general": 10_000_000, "english-novels-100": 20_000_000}
    found = schedule.cost(stage, preset, counts)
    wanted = 10_000_000 * stage.epochs["openstax-general"]
    wanted += 20_000_000 * stage.epochs["english-novels-100"]
    step = preset.rows * preset.shapes["proxy"].context
    assert found.tokens % step == 0 and abs(found.tokens - wanted) <= step
    assert found.available == 30_000_000
    assert found.flops == found.tokens * preset.shapes["proxy"].flops_a_token
    assert found.minutes(found.flops / 60e12) == pytest.approx(1.0)


def test_a_preset_weighs_sources_but_not_their_turns() -> None:
    preset = replace(PRESETS["demo"], scale=0.5, times={"openstax-general": 4.0})
    epochs = preset.epochs(STAGES["base-tune"])
    wanted = STAGES["base-tune"].epochs
    assert epochs["openstax-general"] == 2.0 * wanted["openstax-general"]
    assert epochs["turns:openstax-general"] == 0.5 * wanted["turns:openstax-general"]
    for each in PRESETS.values():
        assert set(each.times) <= set(SOURCES)


def test_minutes_are_shared_by_cost_within_a_lane() -> None:
    known = {name: schedule.Cost(name, 1, 1, float(i)) for i, name in enumerate(STAGES, 1)}
    shares = schedule.minutes_of(tuple(STAGES), known, 60.0)
    for lane in LANES:
        assert sum(shares[name] for name in lane) == pytest.approx(60.0)
    only = schedule.minutes_of(("base", "expert-tune"), known, 60.0)
    assert set(only) == {"base", "expert-tune"}
    assert math.isinf(schedule.minutes_of(("base",), known, math.inf)["base"])


def test_lanes_run_what_is_not_done_and_stop_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    ended = SimpleNamespace(returncode=0)

    def pretend(command: list[str], **_: object) -> SimpleNamespace:
        name = command[command.index("stage") + 1]
        called.append(name)
        if name != "expert-pretrain":  # that one runs out of time
            (tmp_path / f"{name}.done").touch()
        return ended

    monkeypatch.setattr(schedule.subprocess, "run", pretend)
    (tmp_path / "target-pretrain.done").touch()
    left = schedule.run_lanes(list(STAGES), tmp_path, [], math.inf)
    assert sorted(called) == ["base", "expert-pretrain", "target-tune"]
    assert left == ["expert-pretrain", "expert-tune", "expert-neft", "base-tune"]
    assert schedule.run_lanes(list(STAGES), tmp_path, [], 0.0) == left and len(called) == 3
    ended.returncode = 1
    with pytest.raises(SystemExit, match="expert-pretrain"):
        schedule.run_lanes(list(STAGES), tmp_path, [], math.inf)


def test_streams_are_read_as_often_as_their_epochs_say() -> None:
    streams = {
        "a": stream([10] * 60, 0, whole=False),
        "b": stream([40] * 30, 1000, whole=False),
        "c": stream([8] * 50, 2000, whole=True),
    }
    packer = Packer(streams, {"a": 2.0, "b": 1.0, "c": 6.0, "unread": 3.0}, 64, seed=3)
    whole = 2 * 600 + 1200 + 6 * 400
    ids, weights = packer.rows(3 * whole // 65)
    assert ids.shape == weights.shape == (3 * whole // 65, 65)
    read = Counter((ids // 1000).ravel().tolist())
    for number, tokens in ((0, 3600), (1, 3600), (2, 7200)):
        assert read[number] == pytest.approx(tokens, rel=0.15)


def test_turns_are_never_cut_and_gaps_are_filled() -> None:
    streams = {
        "turns:x": stream([23] * 40, 1000, whole=True),
        "text": stream([500] * 3, 0, whole=False),
    }
    packer = Packer(streams, {"turns:x": 9.0, "text": 0.001}, 64, seed=1)
    for row in packer.rows(30)[0]:
        found = Counter(int(token) for token in row)
        assert sum(found.values()) == 65
        assert all(count % 23 == 0 for token, count in found.items() if token >= 1000)


def test_a_restored_packer_goes_on_with_the_same_rows() -> None:
    streams = {"a": stream([30] * 9, 0, whole=False), "b": stream([20] * 9, 100, whole=True)}
    epochs = {"a": 1.0, "b": 2.0}
    first = Packer(streams, epochs, 32, seed=5)
    first.rows(7)
    other = Packer(streams, epochs, 32, seed=6)
    other.restore(first.state())
    assert (first.rows(20)[0] == other.rows(20)[0]).all()


def test_parts_of_a_stream_join() -> None:
    whole = joined([stream([3, 2], 0, whole=True), stream([4], 50, whole=True)])
    assert len(whole) == 3 and whole.unit(2)[0].tolist() == [50] * 4
    assert whole.starts.tolist() == [0, 3, 5, 9]
    assert 0 < PROMPT_WEIGHT < 1


def test_turns_of_every_kind_of_source() -> None:
    answer = "Asthma is a disease of the airways. It makes breathing hard. " * 3
    documents = {
        "medquad": f"Question: What is (are) Asthma ?\n\nAnswer: {answer}",
        "mts-dialog-train": "Dialogue:\nDoctor: Any allergies?\nPatient: No.\n\nALLERGY:\nNone.",
        "aci-bench-train": "[doctor] hi\n[patient] hello\nNOTE: CHIEF COMPLAINT\nA cough.",
        "mtsamples-noleak": "ALLERGIES: No known drug allergies.\nPLAN: Follow up in a week.",
        "gsm8k-train": "Question: 2 and 2?\nAnswer: 2+2=4.\n#### 4",
        "openstax-microbiology": "Cells\n\n"
        + "A cell is the smallest unit that lives by itself. All organisms are made of cells. " * 3,
    }
    for source, text in documents.items():
        turns = turns_of([Document(source, "1", text)], "seed")
        assert turns and all(turn.user and turn.answer for turn in turns), source
        assert turns == turns_of([Document(source, "1", text)], "seed")
    for text in ("no talk at all", "[doctor] hi"):  # what is left of a visit may be little
        assert turns_of([Document("aci-bench-train", "1", text)], "s") == []
    (problem,) = turns_of([Document("gsm8k-train", "1", documents["gsm8k-train"])], "s")
    assert problem.answer.endswith("The answer is 4.")
