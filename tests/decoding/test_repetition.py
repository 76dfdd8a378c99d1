"""Loops are found, however their bytes come; what people write is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capt_local.decoding.ensemble import Ensemble
from capt_local.decoding.options import FinishReason, GenerateOptions
from capt_local.decoding.proxy import LogitsCache
from capt_local.decoding.reasoning import _COPIES as COPIES
from capt_local.decoding.reasoning import _SPAN as SPAN
from capt_local.decoding.reasoning import RepetitionDetector
from tests.decoding.trios import TARGET, walk
from tests.fakes import FakeModel

ROOT = Path(__file__).resolve().parents[2]
PROSE = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "capt_local" / "data").glob("*.txt")])


def found_at(text: bytes, size: int, *, words: bool = True) -> int | None:
    """How many bytes had come when a loop was found."""
    detector = RepetitionDetector(words=words)
    for start in range(0, len(text), size):
        if detector.feed(text[start : start + size]):
            return min(start + size, len(text))
    return None


@settings(deadline=None, max_examples=40)
@given(
    unit=st.text(min_size=1, max_size=120).map(str.encode),
    front=st.text(max_size=60).map(str.encode),
    size=st.integers(1, 9),
)
def test_a_unit_without_end_is_found_soon(unit: bytes, front: bytes, size: int) -> None:
    text = front + unit * (2 + 2 * SPAN // len(unit))
    limit = len(front) + max(SPAN, COPIES * len(unit)) + len(unit) + 48 + size
    found = found_at(text + unit * 6, size, words=False)
    assert found is not None and found <= limit


def test_turns_that_differ_in_a_number_are_found() -> None:
    text = "".join(f"{n}. The patient was given aspirin on day {n}.\n" for n in range(60))
    found = found_at(text.encode(), 4)
    assert found is not None and found < 1200
    assert found_at(text.encode(), 4, words=False) is None


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_prose_is_no_loop(path: Path) -> None:
    text = path.read_bytes()
    if path.suffix == ".md":  # its tables and commands are not prose
        lines = [line for line in text.splitlines() if line[:1] not in (b"|", b" ", b"#")]
        text = b"\n".join(lines)
    assert found_at(text, 5) is None


def test_a_rule_and_a_table_of_some_columns_are_no_loop() -> None:
    for text in (b"-" * 80 + b"\n", b"|---" * 12 + b"|\n", b"Name: " + b"_" * 100):
        assert found_at(text, 3) is None


class Stuck(FakeModel):
    """Says "abc" again and again."""

    def logits(self, tokens: list[int]) -> np.ndarray:  # type: ignore[override]
        row = np.zeros(len(self.vocabulary), np.float32)
        row[self.vocabulary.byte_ids[b"abc"[len(tokens) % 3]]] = 40.0
        return row


@pytest.mark.parametrize("stop", [True, False])
def test_an_answer_that_loops_is_ended(stop: bool) -> None:
    trio = Ensemble(LogitsCache("target", Stuck(TARGET, 1)))
    made = walk(trio, GenerateOptions(max_tokens=300, repetition_stop=stop))
    steps = list(made)
    assert len(steps) == (SPAN if stop else 300)
    assert made.finish is (FinishReason.REPETITION if stop else FinishReason.LENGTH)
