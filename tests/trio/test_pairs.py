"""Several pairs of expert and base: what must not change, and what is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capt_local import CombineOptions, GenerateOptions, LoadOptions, Method, Runtime
from capt_local.bundles.manifest import Bundle
from capt_local.cli.app import run
from capt_local.decoding.options import Speed, Step
from tests.small_trio import SMALL_TRIO

# Pairs change how steps are computed, and with it the last bits of drafts.
STEPS = Speed.EXACT_STEPS
NOTE = "The patient is a 61-year-old woman who presents with shortness of breath. She was"
FIVE = ["target", "expert", "base", "expert-2", "base-2"]
TARGET, EXPERT, BASE = (SMALL_TRIO / f"{role}.gguf" for role in FIVE[:3])
PAIRS = {
    "one": ([EXPERT], [BASE]),
    "twice": ([EXPERT, EXPERT], [BASE, BASE]),
    "turned": ([EXPERT, BASE], [BASE, EXPERT]),
    "idle": ([EXPERT, BASE], [BASE, BASE]),
}
Open = Callable[[str], Runtime]


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    """`opened(name)` is a runtime with those pairs."""
    made: dict[str, Runtime] = {}

    def get(name: str) -> Runtime:
        if name not in made:
            bundle = Bundle.from_paths(TARGET, *PAIRS[name])
            made[name] = Runtime.open(bundle, load=LoadOptions(threads=1, context=512))
        return made[name]

    yield get
    for runtime in made.values():
        runtime.close()


def weighed(*alphas: float, plausibility: float = 1e-5, top: int = 0) -> GenerateOptions:
    combine = CombineOptions(alphas=alphas, plausibility=plausibility)
    return GenerateOptions(max_tokens=24, combine=combine, top=top, speed=STEPS)


def steps(runtime: Runtime, options: GenerateOptions) -> list[Step]:
    runtime.forget()  # what is left of another text makes other batches, which round otherwise
    return list(runtime.generate(NOTE, options, raw=True))


def assert_same(found: list[Step], wanted: list[Step]) -> None:
    assert [step.token for step in found] == [step.token for step in wanted]
    assert [step.logp for step in found] == pytest.approx([step.logp for step in wanted], abs=1e-6)


@pytest.mark.parametrize("plausibility", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("pairs", "alphas", "alone"),
    [
        ("turned", (0.75, 0.0), 0.75),  # a pair without weight
        ("twice", (0.5, 0.25), 0.75),  # the same pair twice: weights add up
        ("twice", (0.5,), 1.0),  # one number is for each pair
        ("idle", (0.75, 2.0), 0.75),  # an expert that is its own base
        ("turned", (1.0, 0.25), 0.75),  # the other way round takes away
    ],
)
def test_identities(
    opened: Open, pairs: str, alphas: tuple[float, ...], alone: float, plausibility: float
) -> None:
    wanted = steps(opened("one"), weighed(alone, plausibility=plausibility))
    assert_same(steps(opened(pairs), weighed(*alphas, plausibility=plausibility)), wanted)
    assert any(step.changed for step in wanted)


@pytest.mark.parametrize("method", [Method.UNITE, Method.CAPT_PAPER, Method.EXPERT, Method.BASE])
def test_a_method_for_one_pair_takes_the_first_and_says_so(opened: Open, method: Method) -> None:
    options = GenerateOptions(method=method, max_tokens=8)
    assert_same(steps(opened("turned"), options), steps(opened("one"), options))
    told = "This method uses one pair of expert and base: the first of 2."
    assert told in opened("turned").generate(NOTE, options).notices
    assert told not in opened("one").generate(NOTE, options).notices
    assert told not in opened("turned").generate(NOTE, weighed(1.0)).notices
    target = GenerateOptions(method=Method.TARGET)
    assert told not in opened("turned").generate(NOTE, target).notices


def command(*arguments: str) -> list[str]:
    files = ["--target", TARGET, "--expert", EXPERT, "--expert", BASE, "--base", BASE]
    return [arguments[0], *map(str, files), "--base", str(BASE), "-t", "1", *arguments[1:]]


def test_the_command_line_takes_pairs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("-p", NOTE, "--raw", "-n", "12", "--json", "--top-logprobs", "2")
    assert run(command("generate", *asked, "--alpha", "0.5,2")) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["usage"]["prompt_tokens_by_model"]) == FIVE
    assert list(found["provenance"]["models"]) == FIVE
    assert found["capt"]["weights"][0]["powers"] == [1.0, 0.5, 0.5, 2.0, 2.0]
    kept = tmp_path / "answer.json"
    kept.write_text(json.dumps(found))
    assert run(["explain", str(kept)]) == 0
    capsys.readouterr()
    # The same from the environment, separated as in PATH.
    monkeypatch.setenv("CAPT_LOCAL_TARGET", str(TARGET))
    monkeypatch.setenv("CAPT_LOCAL_EXPERT", os.pathsep.join(map(str, (EXPERT, BASE))))
    monkeypatch.setenv("CAPT_LOCAL_BASE", os.pathsep.join(map(str, (BASE, BASE))))
    assert run(["generate", "-t", "1", *asked, "--alpha", "0.5,2"]) == 0
    assert json.loads(capsys.readouterr().out)["choices"] == found["choices"]
