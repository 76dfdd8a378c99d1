"""The binding's own `Llama` beside a model of ours."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from capt_local.bundles.store import find
from capt_local.errors import MemoryShortage
from capt_local.llama import plain as module
from capt_local.llama.model import LlamaModel
from capt_local.llama.options import LoadOptions
from capt_local.llama.plain import PlainLlama

OPTIONS = LoadOptions(threads=1, context=128)


@pytest.fixture(scope="module")
def path() -> Path:
    return find("demo").models["target"].path


def test_its_answer_is_ours_and_does_not_depend_on_the_one_before(path: Path) -> None:
    with LlamaModel.open(path, OPTIONS) as model, PlainLlama(path, model, OPTIONS) as plain:
        prompt = model.tokenize(b"The patient has a cough and", special=False)
        ours: list[int] = []
        row = model.extend(prompt)[0]
        for _ in range(6):
            ours.append(int(row.argmax()))
            row = model.extend(ours[-1:])[0]
        first = list(islice(plain.tokens(prompt), 6))
        list(islice(plain.tokens(prompt[:3]), 4))
        assert first == ours == list(islice(plain.tokens(prompt), 6))


def test_a_second_copy_that_does_not_fit_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlamaModel.open(path, OPTIONS) as model:
        check = module.check_fits
        monkeypatch.setattr(module, "check_fits", lambda needed: check(needed, available=1000))
        with pytest.raises(MemoryShortage, match="second copy of the target"):
            PlainLlama(path, model, OPTIONS)
