"""`models create` on the demo trio: what it measures is what the models do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Runtime
from capt_local.bundle import store
from capt_local.cli.app import run
from capt_local.cli.models.create_measure import BASE, EVIDENCE, EXPERT, TARGET, read_sample

# Links would change what tells that the files of the demo are the same, under others who use them.
HOW = ["-t", "1", "--copy", "--json"]
DEMO = ["--target", "demo:target", "--expert", "demo:expert", "--base", "demo:base", *HOW]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of our own."""
    path = tmp_path_factory.mktemp("sample") / "sample.txt"
    path.write_bytes(read_sample(None).texts[0].data[:250])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "heart"


def test_what_is_measured(place: Path, sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-c", "512", "-o", str(place), "--sample", str(sample)]
    assert run(["models", "create", "heart", *DEMO, *flags]) == 0
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
        text = sample.read_bytes()
        score = runtime.score(text, options)
    assert bits["alpha 0.5"] == pytest.approx(score.nats / 0.6931471805599453 / len(text))


def test_a_swapped_pair_is_noticed(
    tmp_path: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--target", "demo:target", "--expert", "demo:base", "--base", "demo:expert"]
    place = tmp_path / "swapped"
    flags = ["-o", str(place), "--sample", str(sample)]
    assert run(["models", "create", "x", *swapped, *HOW, *flags]) == 0
    notices = " ".join(json.loads(capsys.readouterr().out)["notices"])
    assert "whether the two are swapped" in notices
    assert "whether the two are swapped" not in store.find(place).card["usefulness"]
