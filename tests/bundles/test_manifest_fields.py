"""What a manifest says of a bundle besides its files: versions, dates, digests, the card."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from capt_local.bundles import manifest_file
from capt_local.bundles.create import describe, manifest_text, write_manifest
from capt_local.bundles.manifest import MANIFEST, Bundle
from capt_local.bundles.manifest_file import read_bundle
from capt_local.errors import ModelError

TODAY = datetime.date(2026, 6, 1)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(manifest_file, "version", lambda _: "0.3.36")
    (tmp_path / "target.gguf").write_bytes(b"GGUF target")
    target = describe(
        "target", tmp_path / "target.gguf", tokenizer_sha256="ab" * 32, template_sha256="cd" * 32
    )
    return Bundle(
        id="one",
        models={"target": target},
        version="1.10",
        requires="0.1",
        tested_with="0.3.36",
        review_by="2026-06-01",
        card={"intended_use": "Drafts.\nFor review.", "risks": "It makes things up."},
        folder=tmp_path,
    )


def changed(bundle: Bundle, old: str, new: str) -> Path:
    """The manifest with a change in its text."""
    assert bundle.folder is not None
    text = manifest_text(bundle, bundle.folder)
    assert old in text
    file = bundle.folder / MANIFEST
    file.write_text(text.replace(old, new))
    return file


def test_all_fields_read_back(bundle: Bundle) -> None:
    assert bundle.folder is not None
    again = read_bundle(write_manifest(bundle, bundle.folder), TODAY)
    assert again == bundle
    assert again.models["target"].tokenizer_sha256 == "ab" * 32
    assert "review_by = 2026-06-01\n" in (bundle.folder / MANIFEST).read_text()


def test_a_review_that_is_past_is_a_notice(bundle: Bundle) -> None:
    assert bundle.folder is not None
    file = write_manifest(bundle, bundle.folder)
    assert read_bundle(file, TODAY).notices == ()
    (told,) = read_bundle(file, TODAY + datetime.timedelta(days=1)).notices
    assert "one was to be reviewed by 2026-06-01, which is past" in told


def test_an_engine_that_it_was_not_tested_with_is_a_notice(bundle: Bundle) -> None:
    (told,) = read_bundle(changed(bundle, '"0.3.36"', '"0.3.9"'), TODAY).notices
    assert "tested with llama-cpp-python 0.3.9; here it runs with 0.3.36" in told


@pytest.mark.parametrize(
    ("old", "new"), [('requires = "0.1"', 'requires = "999.1"'), ("schema = 1", "schema = 2")]
)
def test_a_bundle_for_a_newer_program_is_refused_by_name(
    bundle: Bundle, old: str, new: str
) -> None:
    # What a newer format knows, this one does not: the age is told, not the unknown key.
    file = changed(bundle, old, f"{new}\nnovelty = 1")
    with pytest.raises(
        ModelError, match=r"the bundle one was made for a newer capt-local"
    ) as caught:
        read_bundle(file)
    assert "Update capt-local" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('requires = "0.1"', 'requires = "new"', "requires must be a version"),
        ("= 2026-06-01", '= "2026-06-01"', "review_by must be a day without quotes"),
        ("= 2026-06-01", "= 2026-06-01T00:00:00", "review_by must be a day without quotes"),
        ('risks = "', "risks = 1 #", r"card\.risks must be a text"),
        ("ab" * 32, "AB" * 32, r"models\.target\.tokenizer_sha256 must be a SHA-256"),
        ('tested_with = "', "tested_with = 1 #", "tested_with must be a text"),
    ],
)
def test_bad_values_name_the_key(bundle: Bundle, old: str, new: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        read_bundle(changed(bundle, old, new))
