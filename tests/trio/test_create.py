"""`models create` on the demo trio: what it measures is what the models do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Runtime
from capt_local.bundle import store
from capt_local.cli.app import run
from capt_local.cli.models.create_measure import BASE, EVIDENCE, EXPERT, TARGET, read_sample

DEMO = ["--target", "demo:target", "--expert", "demo:expert", "--base", "demo:base", "-t", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "heart"


def test_what_is_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "create", "heart", *DEMO, "-c", "1024", "-o", str(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    bits = found["measured"]["bits_per_byte"]
    assert bits["alpha 1"] < bits[TARGET]  # it is a clinical text
    assert bits[EVIDENCE] < bits[TARGET]
    assert bits[EXPERT] < bits[BASE]
    assert found["measured"]["tokens"] > 0
    assert found["fit"]["expert"]["same_vocabulary"] is True
    assert found["licence"] == "Apache-2.0"
    with Runtime.open(place, load=LoadOptions(threads=1)) as runtime:
        options = GenerateOptions(combine=CombineOptions(alphas=(0.5,)))
        text = read_sample(None).texts[0].data
        score = runtime.score(text, options)
    assert bits["alpha 0.5"] == pytest.approx(score.nats / 0.6931471805599453 / len(text))


def test_a_swapped_pair_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = ["--target", "demo:target", "--expert", "demo:base", "--base", "demo:expert"]
    place = tmp_path / "swapped"
    assert run(["models", "create", "x", *swapped, "-t", "1", "-o", str(place), "--json"]) == 0
    notices = " ".join(json.loads(capsys.readouterr().out)["notices"])
    assert "whether the two are swapped" in notices
    assert "whether the two are swapped" not in store.find(place).card["usefulness"]


def test_files_of_the_demo_stay(place: Path) -> None:
    assert all(model.path.is_file() for model in store.find("demo").models.values())
