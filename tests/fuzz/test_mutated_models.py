"""Damaged GGUF files on their whole way: this process lives on, and each gets a named error.

`scripts/fuzz_models.py` does the same with 1,000 of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.fuzz.mutated import Outcome, outcomes

COUNT = 180


def test_damaged_models_end_in_a_named_error_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    found: Counter[Outcome] = Counter()
    for number, became, said in outcomes(range(COUNT), tmp_path):
        found[became] += 1
        if became is not Outcome.LOADED:
            assert "damaged.gguf" in said or "(damaged" in said, (number, said)
            assert "\n" not in said and str(tmp_path) not in said, (number, said)
            assert said.isprintable(), (number, said)
    assert found.total() == COUNT
    # Most of what is wrong is found before llama.cpp sees it, and what passes has no other harm.
    assert found[Outcome.HEADER] > COUNT / 3 and found[Outcome.LOADED] > 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["valid", "work"]
